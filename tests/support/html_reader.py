"""A strict reader of HTML pages."""

from html.parser import HTMLParser

VOID = {"meta", "br", "hr", "img", "link", "input", "wbr"}


class Reader(HTMLParser):
    """Reads a page strictly: every tag is closed in its order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.tables = [], [], {}
        self.caption, self.rows = "", None
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "table":
            self.tables.setdefault(self.caption, self.rows)

    def handle_data(self, data):
        if self.open and self.open[-1] in ("figcaption", "h2"):
            self.caption = data
        if self.open and (self.open[-1] in ("td", "th") or self.open[-2:] == ["td", "b"]):
            self.rows[-1][-1] += data
