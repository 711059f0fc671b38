"""A tokenizer of words for the small vocabulary, with a chat template; made here, no hub is reached."""

from __future__ import annotations

from functools import cache

from models import VOCABULARY
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for each in messages %}{{ each['role'] }} {{ each['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "user", "assistant"]


@cache
def words() -> PreTrainedTokenizerFast:
    names = [*SPECIAL, *(f"w{number}" for number in range(len(SPECIAL), VOCABULARY))]
    made = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Sequence([decoders.Replace("w", " w")])
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, padding_side="left", **special)
    tokenizer.chat_template = TEMPLATE
    return tokenizer
