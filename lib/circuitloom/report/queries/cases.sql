-- How many claims of each case study hold.
SELECT case_study, count(*) AS claims, count_if(holds) AS hold, count_if(NOT holds) AS fail
FROM claim
GROUP BY case_study
ORDER BY case_study
