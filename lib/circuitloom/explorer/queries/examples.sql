SELECT
    band, rank, sequence, position, activation, tokens, activations, position - window_start AS place,
    band_low, band_high, band_share
FROM example
WHERE run = {run} AND layer = {layer} AND feature = {feature}
ORDER BY CASE band WHEN 0 THEN 1000 ELSE band END DESC, rank
