-- Claims of the case study: each holds where its whole interval keeps the bound.
SELECT claim, statement, value, low, high, relation, bound, holds, n, of, published
FROM claim
WHERE case_study = {case}
