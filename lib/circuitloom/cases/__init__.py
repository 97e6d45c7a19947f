"""Case studies. Each asks a question about a model and its dictionaries, and answers this question by claims with
bootstrap intervals.

To add a kind of case study:

1. config/cases/KIND.py: a subclass of `Case` with its keys and the names of its tables and figures; add it to `KINDS`.
2. core/tables/cases.py: schemas of tables that no other kind writes.
3. cases/KIND/study.py: draw prompts, measure (measurements.py), return a `CaseReport` (report.py).
4. workflow/rules/cases.smk and scripts/cases_KIND.py: one rule and the script that it runs.
5. tests/cases/test_KIND.py: the study of a model whose answer is known."""
