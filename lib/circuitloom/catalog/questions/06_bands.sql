-- Does it mean the same where it fires weakly?
SELECT band, round(band_low, 2) AS low, round(band_high, 2) AS high, round(band_share, 3) AS share, marked_text(tokens, position - window_start) AS text
FROM example
WHERE run = {run} AND layer = {layer} AND feature = {feature} AND band > 0 AND rank < 2
ORDER BY band DESC, rank
