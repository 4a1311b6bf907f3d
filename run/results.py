"""What a run measures, as results.json holds it."""

from dataclasses import asdict, dataclass, field, fields


@dataclass
class Results:
    command: str
    task: str
    unit: str  # what length counts
    in_distribution_lengths: tuple  # shortest and longest
    new_words: tuple  # names of the ranges with new words
    answers: list | None  # of a classification task
    base: dict  # name, fingerprint, parameters
    method: str  # the contender that the run is about
    prompt: dict  # rows, random, trigger
    args: dict
    context: dict | None  # the best context
    labels: dict  # {contender: what tables call it}
    trainable: dict  # {contender: number of parameters}
    record: dict  # run/record.py
    examples: dict = field(default_factory=dict)  # {contender: (examples, epochs) that it learned from}
    before: dict = field(default_factory=dict)  # {contender: {range: score}} before tuning
    accuracy: dict = field(default_factory=dict)  # the same after tuning
    nearest_tokens: list = field(default_factory=list)
    loss: dict = field(default_factory=dict)  # {contender: {"examples": [...], "loss": [...]}}
    validation: dict = field(default_factory=dict)  # {contender: the record of eval/validation.py}
    seconds: dict = field(default_factory=dict)  # {part of the run: seconds}
    written: dict = field(default_factory=lambda: {"before": {}, "accuracy": {}})  # answers, for details.json alone

    @classmethod
    def read(cls, state):
        """The Results of a checkpoint's state or of results.json; other keys are left out."""
        return cls(**{f.name: state[f.name] for f in fields(cls) if f.name in state})

    def for_json(self):
        content = asdict(self)
        del content["written"]
        return content
