"""A tokenizer of single letters for the small vocabulary, with a chat template; no hub is reached."""

from __future__ import annotations

from functools import cache
from string import ascii_letters, digits, punctuation

from models import VOCABULARY
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for each in messages %}{{ each['role'] }}: {{ each['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LETTERS = [*ascii_letters, *digits, *punctuation, " ", *map(chr, range(0x3B1, 0x3B1 + VOCABULARY))]


@cache
def letters() -> PreTrainedTokenizerFast:
    pieces = [*SPECIAL, *LETTERS][:VOCABULARY]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
