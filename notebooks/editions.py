"""The notebooks for a class: an edition without solutions, one with open solutions, and badges for notebook hosts.

    python notebooks/editions.py student OUT          without solutions and answers; hints and checks stay
    python notebooks/editions.py instructor OUT       with all of them unfolded
    python notebooks/editions.py badges OWNER/REPO    Markdown for a page: each notebook on Colab, Kaggle and Binder

OUT gets the notebooks alone. To run them, put them in place of those beside this file, which hold course.py. Binder
installs requirements.txt by itself; on Colab and Kaggle the printed cell has to run first.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a program, it finds the package beside notebooks/

from minigemma import Error
from minigemma.files import make_directory, replacing

FOLDER = Path(__file__).resolve().parent
SECRET = ("Solution", "Answers", "What a good answer has")  # summaries of what students do not get
DETAILS = re.compile(r"<details><summary>(.*?)</summary>.*?</details>\n*", re.DOTALL)
HOSTS = {
    "Colab": (
        "https://colab.research.google.com/assets/colab-badge.svg",
        "https://colab.research.google.com/github/{repo}/blob/{branch}/{path}",
    ),
    "Kaggle": (
        "https://kaggle.com/static/images/open-in-kaggle.svg",
        "https://kaggle.com/kernels/welcome?src=https://github.com/{repo}/blob/{branch}/{path}",
    ),
    "Binder": ("https://mybinder.org/badge_logo.svg", "https://mybinder.org/v2/gh/{repo}/{branch}?labpath={quoted}"),
}


def student(text):
    """A Markdown cell without the folded solutions and answers; the hints stay."""
    return DETAILS.sub(lambda fold: "" if fold[1] in SECRET else fold[0], text).rstrip("\n")


def instructor(text):
    """A Markdown cell with everything that is folded in it open."""
    return text.replace("<details>", "<details open>")


def write_edition(change, out):
    """Write every notebook with its Markdown cells changed -> the names of the files. Code and outputs stay.

    Raises Error for the folder of the notebooks themselves, and where `out` cannot be written.
    """
    if Path(out).resolve() == FOLDER:
        raise Error(f"{out}: holds the notebooks themselves; name another directory")
    out, names = make_directory(out), []
    for path in sorted(FOLDER.glob("[0-9][0-9]*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = change("".join(cell["source"])).splitlines(keepends=True)
        notebook["cells"] = [cell for cell in notebook["cells"] if cell["source"]]
        with replacing(out / path.name) as temporary:
            temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        names.append(path.name)
    return names


def badges(repo, branch):
    """Markdown: a line of badges for each notebook, and the cell that Colab and Kaggle need.

    repo: a public GitHub repository, as OWNER/REPO. Raises Error for anything else.
    """
    if not re.fullmatch(r"[\w-]+/[\w.-]+", repo):
        raise Error(f"{repo!r}: name the repository as OWNER/REPO")
    lines = []
    for notebook in sorted(FOLDER.glob("[0-9][0-9]*.ipynb")):
        path = f"notebooks/{notebook.name}"
        places = {"repo": repo, "branch": branch, "path": path, "quoted": quote(path, safe="")}
        shown = [f"[![{host}]({image})]({link.format(**places)})" for host, (image, link) in HOSTS.items()]
        lines.append(f"- {notebook.stem.replace('_', ' ')}: {' '.join(shown)}")
    name = repo.partition("/")[2]
    first = f"""
The first cell on Colab and Kaggle:

```
!git clone --depth 1 --branch {branch} https://github.com/{repo}
%cd {name}/notebooks
%pip install -q -r ../requirements.txt
```"""
    return "\n".join([*lines, first])


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("student", "instructor", "badges"))
    parser.add_argument("where", metavar="OUT or OWNER/REPO")
    parser.add_argument("--branch", default="main", help="of the repository, for badges (default main)")
    args = parser.parse_args(argv)
    try:
        if args.what == "badges":
            print(badges(args.where, args.branch))
        else:
            names = write_edition(student if args.what == "student" else instructor, args.where)
            print(f"{args.where}: {len(names)} notebooks")
    except Error as error:
        print(f"editions: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
