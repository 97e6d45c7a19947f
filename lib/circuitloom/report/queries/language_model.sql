-- What the language model achieves on held-out text.
SELECT figure, value, unit, meaning
FROM language_model
