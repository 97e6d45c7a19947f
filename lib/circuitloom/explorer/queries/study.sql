SELECT *
FROM study
WHERE study = {study}
