-- Documents and tokens of each part of the text.
SELECT split, count(*) AS documents, sum(n_tokens)::BIGINT AS tokens
FROM document
GROUP BY split
ORDER BY split
