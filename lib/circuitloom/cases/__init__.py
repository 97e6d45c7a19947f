"""Case studies. A case study asks one question about a model. Claims with bootstrap intervals answer the question.

To add a kind of case study:

1. config/cases/KIND.py: a subclass of `Case` with config keys and names of tables and figures. Add it to `KINDS`.
2. core/tables/cases.py: schemas of tables that no other kind writes.
3. cases/KIND/study.py: draw prompts, measure (measurements.py), return a `CaseReport` (report.py).
4. workflow/rules/cases.smk: one rule. scripts/cases_KIND.py: the script of this rule.
5. tests/cases/test_KIND.py: a test on a model whose answer is known."""
