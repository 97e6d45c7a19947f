-- Features of any run and layer by the cosine of their activations with a feature's, over all tokens.
-- example: SELECT run, layer, feature, cosine FROM similar_features({run}, {layer}, {feature}) LIMIT 5
CREATE OR REPLACE MACRO similar_features(of_run, of_layer, of_feature) AS TABLE
WITH
mine AS (
    SELECT sequence, position, activation
    FROM activation
    WHERE run = of_run AND layer = of_layer AND feature = of_feature
),

products AS (
    SELECT other.run, other.layer, other.feature, sum(other.activation * mine.activation) AS product, count(*) AS n_both
    FROM activation AS other
    JOIN mine USING (sequence, position)
    GROUP BY ALL
)

SELECT
    products.run,
    products.layer,
    products.feature,
    product / (this.rms_activation * sqrt(this.n_tokens) * other.rms_activation * sqrt(other.n_tokens)) AS cosine,
    n_both,
    other.n_tokens
FROM products
JOIN feature AS other
    ON other.run = products.run AND other.layer = products.layer AND other.feature = products.feature
JOIN feature AS this ON this.run = of_run AND this.layer = of_layer AND this.feature = of_feature
WHERE NOT (products.run = of_run AND products.layer = of_layer AND products.feature = of_feature)
ORDER BY cosine DESC, products.run, products.layer, products.feature;
