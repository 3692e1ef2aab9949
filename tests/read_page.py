"""Pages of runs, read as a test wants them."""

from html.parser import HTMLParser

VOID = {"meta", "input", "br", "link", "img"}


class Page(HTMLParser):
    """A page as tables, texts and references; asserts that every tag is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.tables, self.references, self.tags = [], [], [], [], []
        self.section = ""
        self.by_section = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append((tag, given))
        self.references += [
            given[name] for name in ("src", "href", "xlink:href", "action", "data") if name in given
        ]
        if tag not in VOID:
            self.open.append((tag, given))
        if tag == "section":
            self.section = given["id"]
        if tag == "table":
            self.tables.append((self.section, []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> within {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, text):
        kinds = [tag for tag, _ in self.open]
        if "td" in kinds or "th" in kinds:
            self.tables[-1][1][-1][-1] += text
        if kinds and kinds[-1] not in ("style", "script"):
            self.texts.append(text)
            clock = self.section == "times" or any(
                given.get("class", "").startswith("clock") for _, given in self.open
            )
            if not clock:
                self.by_section.setdefault(self.section, []).append(text)

    def table(self, section):
        return next(rows for name, rows in self.tables if name == section)

    @property
    def words(self):
        return " ".join(" ".join(self.texts).split())
