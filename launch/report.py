"""Draws the page of a run again: python -m launch.report runs/tiny writes runs/tiny/report.html."""

import argparse
import logging

from lclm_jax.cli import path, run
from lclm_jax.reports.run import write_report


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=path, help="directory that training wrote to")
    logging.info("the report is %s", write_report(parser.parse_args().run))


if __name__ == "__main__":
    run(main)
