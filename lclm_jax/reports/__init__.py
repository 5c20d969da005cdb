"""Reports about runs, evaluations, prepared data and compiled programs, made from files alone.

Public: `run.write_report`, `evaluation.write_page`, `data.write_page`, `capacity.write_page`,
`capacity.write_summary`.
"""
