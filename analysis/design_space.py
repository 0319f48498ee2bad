"""Write docs/design_space.md and update the table of options in the README: `python -m analysis.design_space`."""

from __future__ import annotations

from analysis.site.design_space import PAGE, README, page, with_options


def main() -> None:
    for path, text in ((PAGE, page()), (README, with_options(README.read_text(encoding="utf-8")))):
        path.write_text(text, encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main()
