"""GLUE's eight tasks with a few English sentences each, in the layout of the official files."""

from pathlib import Path

# (what is said, the same in other words, its contrary, something else that goes with it)
FACTS = (
    ("The river froze in January.", "In January the river was frozen.", "The river never freezes.", "It was cold."),
    ("She sold her house last year.", "Last year she sold her home.", "She still owns her house.", "She moved away."),
    ("The train arrived ten minutes late.", "The train was late by ten minutes.", "The train was early.", "It rained."),
    ("Two dogs are running on the beach.", "Dogs run along the beach.", "The beach is empty.", "The dogs are brown."),
    ("The museum opens at nine.", "At nine the museum opens.", "The museum is closed for good.", "Tickets are cheap."),
    ("He plays the violin every evening.", "Every evening he plays the violin.", "He plays nothing.", "He is happy."),
    ("The bridge was built in 1902.", "In 1902 they built the bridge.", "There is no bridge.", "It is made of steel."),
    ("A child is eating an apple.", "An apple is eaten by a child.", "Nobody is eating.", "The apple is sweet."),
    ("The bank raised its rates in May.", "Rates were raised by the bank in May.", "Rates fell.", "Shares fell, too."),
    ("My brother lives in Oslo.", "Oslo is where my brother lives.", "My brother lives in Rome.", "He likes snow."),
    ("The farmer planted potatoes.", "Potatoes were planted by the farmer.", "Nothing was planted.", "It was April."),
    ("The letter came on Monday.", "On Monday the letter came.", "The letter never came.", "It was from her aunt."),
)
QUESTIONS = (
    "When did the river freeze?",
    "What did she sell?",
    "How late was the train?",
    "What is running on the beach?",
    "When does the museum open?",
    "What does he play?",
    "When was the bridge built?",
    "What is the child eating?",
    "When did the bank raise its rates?",
    "Where does my brother live?",
    "What did the farmer plant?",
    "When did the letter come?",
)
REVIEWS = (
    ("a warm and funny film , full of life", "1"),
    ("a dull story that never ends", "0"),
    ("the actors are wonderful", "1"),
    ("it is a waste of two hours", "0"),
    ('" beautiful from the first minute to the last', "1"),
    ("neither funny nor sad , only long", "0"),
    ("I laughed and cried , and would see it again", "1"),
    ("bad jokes , bad songs and a bad ending", "0"),
)
GRAMMAR = (
    ("The boy who won the prize is my cousin.", "1"),
    ("The boy who won the prize are my cousin.", "0"),
    ("They asked whether we had eaten.", "1"),
    ("They asked whether had we eaten the.", "0"),
    ("Mary gave the book to John.", "1"),
    ("Mary gave to John the book it.", "0"),
    ("What did you say that he bought?", "1"),
    ("What did you say the claim that he bought it who?", "0"),
)
HEADERS = {
    "MNLI": "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t"
    "sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "RTE": "index\tsentence1\tsentence2\tlabel",
    "SST-2": "sentence\tlabel",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
}


def sentences() -> list[str]:
    """Every sentence, to learn pieces from."""
    return [*(s for fact in FACTS for s in fact), *QUESTIONS, *(s for s, _ in REVIEWS), *(s for s, _ in GRAMMAR)]


def rows(task: str) -> list[str]:
    """Lines of a training file without its header."""
    following = FACTS[1:] + FACTS[:1]
    if task == "CoLA":
        return [f"gj04\t{label}\t{'' if label == '1' else '*'}\t{text}" for text, label in GRAMMAR]
    if task == "SST-2":
        return [f"{text}\t{label}" for text, label in REVIEWS]
    found = []
    for n, (fact, other, question) in enumerate(zip(FACTS, following, QUESTIONS, strict=True)):
        said, same, contrary, beside = fact
        if task == "MNLI":
            kinds = ((same, "entailment"), (contrary, "contradiction"), (beside, "neutral"))
            parses = "\t".join(["( )"] * 4)
            found += [f"{n}\t{n}\t{n}e\tfiction\t{parses}\t{said}\t{b}\t{kind}\t{kind}" for b, kind in kinds]
        elif task == "MRPC":
            found += [f"1\t{n}\t{n + 100}\t{said}\t{same}", f"0\t{n}\t{n + 200}\t{said}\t{other[0]}"]
        elif task == "QQP":
            again = f"Please tell me. {question}"
            found += [f"{n}\t{n}\t{n + 50}\t{question}\t{again}\t1", f"{n}\t{n}\t{n + 60}\t{question}\t{other[0]}\t0"]
        elif task == "QNLI":
            found += [f"{n}\t{question}\t{said}\tentailment", f"{n}\t{question}\t{other[0]}\tnot_entailment"]
        elif task == "RTE":
            found += [f"{n}\t{said}\t{same}\tentailment", f"{n}\t{said}\t{contrary}\tnot_entailment"]
        else:
            scores = ((same, "5.000"), (beside, "2.400"), (other[0], "0.200"))
            found += [f"{n}\tnews\tf\t2012\t{n}\ta\tb\t{said}\t{b}\t{score}" for b, score in scores]
    return found


def write_task(folder: Path, task: str) -> Path:
    """Write ``folder/<task>``, every third line of the training file in that of development."""
    made = folder / task
    made.mkdir(parents=True)
    lines, header = rows(task), [HEADERS[task]] if task in HEADERS else []
    # every kind of sample comes in both
    dev_header, held_out = header, lines[:: 4 if task in ("MNLI", "STS-B") else 3]
    if task == "MNLI":
        dev_header = [HEADERS["MNLI"].replace("label1", "label1\tlabel2\tlabel3\tlabel4\tlabel5")]
        held_out = ["\t".join([*line.split("\t")[:-1], *["neutral"] * 4, line.split("\t")[-1]]) for line in held_out]
    names = ("dev_matched", "dev_mismatched") if task == "MNLI" else ("dev",)
    for name in names:
        (made / f"{name}.tsv").write_text("\n".join([*dev_header, *held_out]) + "\n", encoding="utf-8")
    (made / "train.tsv").write_text("\n".join([*header, *lines]) + "\n", encoding="utf-8")
    return made


def write_glue(folder: Path) -> Path:
    """All eight tasks below ``folder``."""
    for task in ("CoLA", *HEADERS):
        write_task(folder, task)
    return folder
