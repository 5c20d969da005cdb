"""Answer a question about a store with an agent, which expands the chunks whose words it needs.

python -m launch.agent --store memories "Which invoice was paid twice?" --page answer.html
"""

import json
import sys

from lclm_jax.cli import add_store_arguments, make_parser, path, run, setting
from lclm_jax.config.settings import Count, Size
from lclm_jax.files.directories import check_writable
from lclm_jax.inference.agent import DEFAULT_BUDGET, FORMS, Agent, Round, describe
from lclm_jax.inference.store import open_store
from lclm_jax.reports.agent import write_agent_page


def main():
    parser = make_parser(__doc__)
    parser.add_argument("question")
    add_store_arguments(parser)
    parser.add_argument("--form", choices=list(FORMS), default="text", help="of requests")
    parser.add_argument("--chunk-tokens", type=setting(Size), default=512)
    parser.add_argument("--max-rounds", type=setting(Count), default=5)
    parser.add_argument("--budget", type=setting(Count), default=DEFAULT_BUDGET, help="of tokens")
    parser.add_argument("--max-tokens", type=setting(Size), default=256, help="of a reply")
    parser.add_argument("--page", type=path, metavar="FILE", help="write the rounds as HTML")
    parser.add_argument("--trace", type=path, metavar="FILE", help="append the chat as JSON lines")
    arguments = parser.parse_args()

    for file in filter(None, (arguments.page, arguments.trace)):
        check_writable(file.absolute().parent)
    store = open_store(arguments.store, arguments.checkpoint)
    names = ("form", "chunk_tokens", "max_rounds", "budget", "max_tokens")
    agent = Agent(store.model, store, **{name: getattr(arguments, name) for name in names})
    answer = agent.ask(arguments.question, show_round)
    sys.stdout.write(f"{answer.text}\n")
    for chunk in answer.expanded:
        sys.stdout.write(f"source: {describe(chunk)}\n")
    if arguments.page:
        write_agent_page(answer.to_dict(), arguments.page)
    if arguments.trace and answer.row_error:
        sys.stderr.write(f"left out of {arguments.trace}: {answer.row_error}\n")
    elif arguments.trace:
        with arguments.trace.open("a", encoding="utf-8") as file:
            file.write(json.dumps(answer.to_row()) + "\n")


def show_round(step: Round):
    positions = f"{step.positions_read} of {step.positions} positions read"
    sys.stderr.write(f"{positions}: {step.reply.strip()}\n")


if __name__ == "__main__":
    run(main)
