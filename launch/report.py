"""Rewrite the report of a run: python -m launch.report runs/tiny writes runs/tiny/report.html."""

import logging

from lclm_jax.cli import make_parser, path, run
from lclm_jax.reports.run import write_report


def main():
    parser = make_parser(__doc__)
    parser.add_argument("run", type=path, help="directory that training wrote to")
    arguments = parser.parse_args()
    logging.info("the report is %s", write_report(arguments.run))


if __name__ == "__main__":
    run(main)
