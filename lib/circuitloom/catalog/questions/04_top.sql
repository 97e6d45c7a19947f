-- What makes one feature fire most?
SELECT rank, round(activation, 2) AS activation, text
FROM top_examples({run}, {layer}, {feature})
LIMIT 8
