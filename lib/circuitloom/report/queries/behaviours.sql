-- Behaviours that were measured apart from case studies.
SELECT DISTINCT behaviour
FROM faithfulness
WHERE behaviour NOT IN (SELECT case_study FROM claim)
ORDER BY behaviour
