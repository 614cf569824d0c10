"""Gather results of evaluations: a table of all, the paper's tables, accuracy by depth.

kamim report outputs
kamim report outputs/probes outputs/finetuned --output_dir outputs/report
"""

from pathlib import Path

from ..evaluation.report.writing import build_report, write_report
from .endings import run
from .program import plain_parser


def main() -> None:
    """Write report.md and report.tex of the results below some folders."""
    parser = plain_parser(__doc__)
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders with results.json of evaluations")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/report"), help="where the report goes")
    args = parser.parse_args()
    write_report(build_report(args.folders), args.output_dir)
    print(f"report.md and report.tex are in {args.output_dir}")


if __name__ == "__main__":
    run(main)
