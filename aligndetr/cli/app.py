r"""Serve a page in the browser: an image in, then boxes, a table and json.

    %(prog)s --checkpoint output/demo/model_final.pth

It listens on this machine alone, unless --host says otherwise: then whoever reaches the machine can
use the page. Ctrl-C ends it. Needs Gradio: pip install 'aligndetr[app]'.
"""

from .parsing import add_predictor_options, errors_in_one_line, load_predictor, make_parser


def main() -> None:
    """Parse, load, serve."""
    parser = make_parser(__doc__)
    add_predictor_options(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="(%(default)s)")
    parser.add_argument("--max-upload-mb", type=int, default=50, help="(%(default)s)")
    args = parser.parse_intermixed_args()
    with errors_in_one_line():
        predictor = load_predictor(args)  # first: it may lie on the Hub, which the page forbids
        from aligndetr.app import open_page

        place = (args.host, args.port, args.max_upload_mb, args.tile)
        with open_page(predictor, *place) as (page, address):
            print(f"page: {address} (Ctrl-C ends it)", flush=True)
            page.block_thread()
