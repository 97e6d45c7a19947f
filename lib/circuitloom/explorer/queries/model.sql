SELECT figure, value, unit, meaning
FROM language_model
ORDER BY figure
