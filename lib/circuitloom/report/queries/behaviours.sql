-- Behaviours that were measured apart from case studies.
SELECT DISTINCT study
FROM faithfulness
WHERE study NOT IN (SELECT case_study FROM claim)
ORDER BY study
