-- The largest activations of a feature with their surroundings; the token itself stands in [[ ]].
-- example: SELECT rank, activation, text FROM top_examples({run}, {layer}, {feature})
CREATE OR REPLACE MACRO top_examples(of_run, of_layer, of_feature) AS TABLE
SELECT
    rank,
    activation,
    sequence,
    position,
    marked_text(tokens, position - window_start) AS text,
    tokens,
    activations
FROM example
WHERE run = of_run AND layer = of_layer AND feature = of_feature AND band = 0
ORDER BY rank;
