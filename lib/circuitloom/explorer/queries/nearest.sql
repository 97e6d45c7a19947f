SELECT layer, feature, overlap, n_both, lift
FROM coactivation({run}, {layer}, {feature})
LIMIT 10
