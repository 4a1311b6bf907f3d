"""A question in the chat template of a base, as transformers' apply_chat_template writes it."""

import time

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment  # a template comes from anywhere, as the weights do

from files import gguf, schemas
from files.errors import UserError


def chat_template(folder):
    """The template of a checkpoint's folder or GGUF file. Raises UserError where there is none."""
    file, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    if file.is_file():
        return schemas.read_text(file)
    own = gguf.read_tokens(folder) if folder.is_file() else schemas.read_json(config, dict) if config.is_file() else {}
    if not isinstance(template := own.get("chat_template"), str):
        raise UserError(f"{folder} has no chat template: leave out --chat")
    return template


def encode_chat(tokenizer, config, template, question):
    """The tokens of a question and of what stands before its answer. Raises UserError where the template fails."""

    def refuse(message):
        raise TemplateError(message)

    how = {"trim_blocks": True, "lstrip_blocks": True, "extensions": ["jinja2.ext.loopcontrols"]}
    environment = ImmutableSandboxedEnvironment(**how)
    environment.globals |= {"raise_exception": refuse, "strftime_now": time.strftime, "tools": None, "documents": None}
    names = {"bos_token": tokenizer.decode([config.bos_token]), "eos_token": tokenizer.decode(tokenizer.ends[:1])}
    names |= {"messages": [{"role": "user", "content": question}]}
    try:
        text = environment.from_string(template).render(names, add_generation_prompt=True)
    except Exception as error:  # a template can do anything wrong that Python can
        raise UserError(f"the chat template of the base fails ({error}): leave out --chat") from None
    return tokenizer.encoding.encode(text, allowed_special="all")
