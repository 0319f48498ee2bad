"""Write the pages and pictures of docs/ that are made from the code: `python -m analysis.site`."""

from analysis.site.generate import generated

if __name__ == "__main__":
    for path, text in generated().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        print(path)
