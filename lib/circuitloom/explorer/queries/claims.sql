SELECT case_study, claim, statement, value, low, high, relation, bound, holds, n, "of"
FROM claim
ORDER BY case_study, claim
