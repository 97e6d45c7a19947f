-- Which feature of every other run, and which neuron, behaves most like it?
SELECT run, layer, feature, round(cosine, 3) AS cosine, n_both
FROM similar_features({run}, {layer}, {feature})
QUALIFY row_number() OVER (PARTITION BY run ORDER BY cosine DESC) = 1
ORDER BY cosine DESC
LIMIT 10
