SELECT run, layer, feature, cosine, n_both
FROM similar_features({run}, {layer}, {feature})
LIMIT 20
