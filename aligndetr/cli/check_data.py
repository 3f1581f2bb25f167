"""Say what is wrong or odd in a data set before it is trained on.

    %(prog)s --root datasets/trees --output report.html

--root is a folder in COCO's, Roboflow's or YOLO's layout. The exit status is 1 if something is
wrong (with --strict: or odd), 0 otherwise. Every image is decoded, unless --no-images is given.
"""

import argparse

from .parsing import errors_in_one_line, make_parser


def main() -> int:
    """Survey train and val, print what was found, and write the report."""
    args = _parse()
    from aligndetr.data.survey import compare_splits
    from aligndetr.inference.data_report import summarise, write_data_report

    surveys, findings = _survey(args)
    findings += compare_splits(*surveys) if len(surveys) == 2 else []
    print(*map(summarise, surveys), sep="\n")
    for finding in findings:
        print(f"{finding.level} ({finding.split}): {finding.text}")
    if args.output:
        with errors_in_one_line():
            write_data_report(surveys, findings, args.output)
        print(f"report: {args.output}")
    counted = ("error", "warning") if args.strict else ("error",)
    return int(any(finding.level in counted for finding in findings))


def _survey(args: argparse.Namespace) -> tuple[list, list]:
    """Surveys of the splits that there are, and what was found; a missing one is a finding."""
    from aligndetr.data.layouts import find_dataset
    from aligndetr.data.survey import Finding, survey_split

    surveys, findings = [], []
    for split in ("train", "val"):
        paths = [getattr(args, f"{split}_{kind}") for kind in ("json", "images")]
        try:
            json_file, image_root = find_dataset(split, args.root, *paths)
        except ValueError as error:
            findings.append(Finding("error", split, str(error)))
            continue
        survey, found = survey_split(split, json_file, image_root, not args.no_images)
        surveys.append(survey)
        findings += found
    return surveys, findings


def _parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--root", help="folder of the data set")
    for key in ("train-json", "train-images", "val-json", "val-images"):
        parser.add_argument(f"--{key}", help=f"as dataset.{key.replace('-', '_')} of a config")
    parser.add_argument("--output", help="HTML file for the report with charts and pictures")
    parser.add_argument("--no-images", action="store_true", help="do not decode the images")
    parser.add_argument("--strict", action="store_true", help="exit status 1 for warnings too")
    args = parser.parse_args()
    if not (args.root or (args.train_json and args.val_json)):
        parser.error("give --root, or --train-json, --train-images, --val-json and --val-images")
    return args
