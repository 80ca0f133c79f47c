"""Write the data set beside this file: messages to a workshop's booking desk, answered as JSON.

    python make.py

The same seed gives the same files. Wordings, people and machines of the held-out part occur in no
other part, so that its score tells what was learned and not what was remembered.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

SEED = 20261123
INSTRUCTION = "Answer with JSON that has the keys person, machine, day and hours."
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"]
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six"}

PEOPLE = {
    "train": """
        Ada Boris Chloe Dmitri Elena Farid Greta Hamid Ingrid Jonas Keiko Lars Maria Nadia Oscar
        Priya Quentin Rosa Samuel Tara Umar Vera Walter Xenia Yusuf Zoe Alice Bruno Clara Diego
        Esther Felix Gloria Hugo Irene Jakub Katja Liam Mona Nils Odette Paul Renate Stefan Tilda
        Ursula Viktor Wanda Yara Zeno Amir Britta Cyril Daphne Edgar Freya Georg Hilda Isaac Judith
        Klaus Lucia Milan Nora Otto Petra Rahul Sonja Theo Uma Valeria Wim Yvonne Zora
    """.split(),
    "valid": "Anton Beatriz Carlos Dora Emil Fatima Gustav Helena Ismail Johanna".split(),
    "heldout": "Igor Jasmine Kamal Leonie Matteo Noor Olga Pavel Ruth Sven".split(),
}
MACHINES = {
    "train": [
        *("laser cutter", "lathe", "band saw", "3D printer", "kiln", "oscilloscope", "drill press"),
        *("sewing machine", "vinyl plotter", "welding booth", "router table", "spray booth"),
        *("soldering station", "milling machine", "bench grinder", "bead roller", "glass oven"),
        *("label printer", "paper guillotine", "scroll saw", "shot blaster", "pipe bender"),
        *("rivet gun", "mitre saw", "foam cutter", "pottery wheel", "screen press", "tile saw"),
        *("knitting machine", "air compressor", "dust extractor", "thread cutter", "photo booth"),
    ],
    "valid": ["table saw", "heat press", "microscope", "belt sander", "etching bath"],
    "heldout": ["planer", "engraver", "vacuum former", "plasma cutter", "bookbinder", "loom"],
}
PLACES = {
    "train": ["", "", "small ", "large ", "old ", "new ", "upstairs ", "blue ", "second "],
    "valid": ["", "", "red ", "other "],
    "heldout": ["", "", "green ", "third "],
}
WORDINGS = {
    "train": [
        "Hi, {person} here. Can I have the {machine} on {day} for {hours}?",
        "Please book the {machine} for {person}, {day}, {hours}.",
        "{person} needs {hours} at the {machine} this {day}.",
        "Could you put {person} down for the {machine} on {day}? {Hours} will do.",
        "I would like to use the {machine} for {hours} on {day}. Thanks, {person}",
        "{day} please, the {machine}, {hours}. My name is {person}.",
        "Is the {machine} free on {day}? I need it for {hours}. Regards, {person}",
        "{person} asks for the {machine}: {day}, {hours}.",
        "We want the {machine} for {hours}. {day} suits us best. {person}",
        "Not {other}, as I wrote before, but {day}: the {machine} for {hours}. {person}",
        "Booking for {person}. Machine: {machine}. When: {day}. How long: {hours}.",
        "My lesson on {other} is off, so I, {person}, take the {machine} on {day} for {hours}.",
        "Good morning! {person} would love {hours} with the {machine}, if {day} is open.",
        "Reserve {hours} on the {machine} for me on {day}, please. {person}",
        "This is {person}. The {machine} on {day}, {hours}, if nobody else has it.",
        "{hours} of {machine} time for {person} on {day}, please.",
    ],
    "valid": [
        "Hello, could {person} get the {machine} for {hours} on {day}?",
        "On {day} {person} has to work at the {machine}; plan {hours}.",
        "The {machine}, please. {day}. It takes me {hours}. {person}",
        "{other} does not work for me. Is {day} fine for {hours} at the {machine}? {person}",
    ],
    "heldout": [
        "Dear desk, I am {person} and want to reserve {hours} at the {machine} on {day}.",
        "{person} will come on {day} and stay at the {machine} for {hours}.",
        "May I move from {other} to {day}? It is about the {machine}, {hours}. Yours, {person}",
        "For {day}: {machine}, {hours}, name {person}.",
        "I have a big order to finish, so give me the {machine} for {hours} on {day}. {person}",
        "Someone told me the {machine} is idle on {day}. {person} takes it for {hours} then.",
    ],
}
COUNTS = {"train": 240, "valid": 40, "heldout": 40}


def main() -> None:
    """Write the three parts."""
    draw = random.Random(SEED)
    folder = Path(__file__).parent
    for part, count in COUNTS.items():
        seen: dict[str, str] = {}
        while len(seen) < count:
            message, answer = example(part, draw)
            seen.setdefault(message, answer)
        lines = (json.dumps(chat(*pair), ensure_ascii=False) for pair in seen.items())
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def example(part: str, draw: random.Random) -> tuple[str, str]:
    """Return a message and its answer."""
    day, other = draw.sample(DAYS, 2)
    hours = draw.choice(list(NUMBERS))
    said = draw.choice([str(hours), NUMBERS[hours]]) + (" hour" if hours == 1 else " hours")
    machine = draw.choice(PLACES[part]) + draw.choice(MACHINES[part])
    facts = {"person": draw.choice(PEOPLE[part]), "machine": machine}
    wording = draw.choice(WORDINGS[part])
    message = wording.format(**facts, day=day, other=other, hours=said, Hours=said.capitalize())
    return message, json.dumps({**facts, "day": day, "hours": hours})


def chat(message: str, answer: str) -> dict[str, list[dict[str, str]]]:
    """Return an example in the chat form."""
    turns = {"system": INSTRUCTION, "user": message, "assistant": answer}
    return {"messages": [{"role": role, "content": text} for role, text in turns.items()]}


if __name__ == "__main__":
    main()
