-- Tokens that features were predicted to fire on without looking at text: how well that held, mean over features.
SELECT
    run,
    layer,
    protocol,
    count(*) AS features,
    avg(precision) AS precision,
    avg(recall) AS recall,
    avg(f1) AS f1,
    median(f1) AS median_f1
FROM blind
GROUP BY run, layer, protocol
ORDER BY run, layer, protocol
