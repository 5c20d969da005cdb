"""Reports about runs, prepared data and compiled programs, made from files alone.

Public: `run.write_report`, `data.write_page`, `capacity.write_page`, `capacity.write_summary`.
"""
