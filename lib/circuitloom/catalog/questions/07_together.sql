-- Which features fire together with it, in its own layer and in others?
SELECT layer, feature, n_both, round(overlap, 3) AS overlap, round(share_of_this, 3) AS share_of_this, round(lift, 1) AS lift
FROM coactivation({run}, {layer}, {feature})
LIMIT 8
