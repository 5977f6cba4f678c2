import copy

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jobs.finetuning import FinetuneStep
from jobs.recipe import Recipe
from training.batches import RowOrder
from training.checkpoints import Record
from training.course import Watcher
from training.loop import Loop, Rows
from training.masks import sparse_parameters
from training.opening import open_trainable
from training.optimizers import build_optimizer, embedding_names
from training.rows import RowStore, rows_of
from training.running import Place, finetune
from training.settling import Setting

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VOCABULARY = 61
QUIET = Watcher(lambda _told: None)
MODELS = {
    # Its head is its embedding.
    "llama": (
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(
            **SMALL, vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=64,
            tie_word_embeddings=True, pad_token_id=0,
        ),
    ),
    "bert": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(
            **SMALL, vocab_size=VOCABULARY, max_position_embeddings=64, num_labels=3,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
    ),
    "bert-value": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(
            **SMALL, vocab_size=VOCABULARY, max_position_embeddings=64, num_labels=1,
        ),
    ),
    "bert-several": (
        transformers.BertForSequenceClassification,
        transformers.BertConfig(
            **SMALL, vocab_size=VOCABULARY, max_position_embeddings=64, num_labels=3,
            problem_type="multi_label_classification",
        ),
    ),
    "bert-masked": (
        transformers.BertForMaskedLM,
        transformers.BertConfig(**SMALL, vocab_size=VOCABULARY, max_position_embeddings=64),
    ),
    # It looks for the last token of a row by what a row is padded with.
    "llama-classes": (
        transformers.LlamaForSequenceClassification,
        transformers.LlamaConfig(
            **SMALL, vocab_size=VOCABULARY, num_key_value_heads=2, max_position_embeddings=64,
            pad_token_id=VOCABULARY - 1, num_labels=3,
        ),
    ),
    "resnet": (
        transformers.ResNetForImageClassification,
        transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic",
            num_labels=4,
        ),
    ),
    # Its matrices are [inputs, outputs].
    "gpt2": (
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(
            n_embd=32, n_layer=1, n_head=4, vocab_size=VOCABULARY, n_positions=64,
            bos_token_id=1, eos_token_id=2,
        ),
    ),
}  # fmt: skip


@pytest.fixture
def make_folder(tmp_path):
    """Write a small model by name, and give its folder and itself."""

    def make(name, dtype=torch.float32, prepare=None):
        torch.manual_seed(0)
        model_class, config = MODELS[name]
        # What a test prepares is its own.
        model = model_class(copy.deepcopy(config)).to(dtype).eval()
        if prepare is not None:
            with torch.no_grad():
                prepare(model)
        folder = tmp_path / name
        model.save_pretrained(folder)
        return folder, model

    return make


@pytest.fixture
def token_rows(tmp_path):
    """Write rows of tokens of unequal lengths, some with labels, as a data set."""

    def write(rows=32, longest=24, labels=None):
        generator = torch.Generator().manual_seed(rows)
        ids = torch.randint(1, VOCABULARY, (rows, longest), generator=generator)
        lengths = torch.randint(3, longest + 1, (rows,), generator=generator)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        tensors = {"input_ids": ids * mask, "attention_mask": mask}
        if labels is not None:
            tensors["labels"] = torch.randint(labels, (rows,), generator=generator)
        path = tmp_path / "tokens"
        save_file(tensors, path)
        return path, tensors

    return write


def finetune_step(**choices):
    """Give a finetune step with these choices."""
    plain = {"op": "finetune", "dataset": f"ds_{'0' * 64}", "steps": 1, "batch_size": 32}
    return FinetuneStep.model_validate(plain | {"max_grad_norm": None} | choices)


@pytest.fixture
def make_loop(tmp_path):
    """Put a training together, up to its first step."""
    opened = []

    def make(folder, dataset, micro_batch_size, **choices):
        step = finetune_step(**choices)
        trainable = open_trainable(folder, dataset, step, "cpu")
        parameters = trainable.trained_parameters(step)
        scratch = tmp_path / f"rows-{len(opened)}"
        scratch.mkdir()
        batches = trainable.batches(dataset, step)
        every = (row for batch in batches for row in rows_of(batch))
        store = RowStore(scratch, every, trainable.padding)
        opened.append(store)
        optimizer = build_optimizer(parameters, step, has_8bit_states=False)
        sparse = sparse_parameters(parameters, embedding_names(trainable.module))
        return Loop(
            trainable, tuple(sparse), step,
            Rows(store, 0, RowOrder(len(store), step.batch_size, step.seed)),
            Setting(micro_batch_size, (), parameters, optimizer, (), 0),
            step.steps or 1, Record("job"),
        )  # fmt: skip

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def train(tmp_path):
    """Train a folder, and give what was measured and the folder that came of it."""

    def run(folder, dataset, name="trained", device="cpu", watcher=QUIET, **choices):
        step = finetune_step(**{"steps": 6, "batch_size": 16, "learning_rate": 1e-2} | choices)
        (tmp_path / name).mkdir()
        place = Place(
            folder, folder, dataset, tmp_path / name / "out", tmp_path / name / "scratch", device
        )
        recipe = Recipe.model_construct(steps=(step,))
        return finetune(place, recipe, watcher), place.output

    return run


@pytest.fixture
def make_step():
    """Makes a finetune step of what differs from the smallest one."""
    plain = {"op": "finetune", "dataset": f"ds_{'0' * 64}", "steps": 1}
    return lambda **parts: FinetuneStep(**plain | parts)


class _LargestTensor(TorchDispatchMode):
    """Remembers the largest memory that any operation newly took for a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            if tensor.untyped_storage().data_ptr() not in given:
                self.nbytes = max(self.nbytes, tensor.untyped_storage().nbytes())
        return out


def _tensors(values):
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


@pytest.fixture
def largest_tensor():
    """A context that counts the bytes of the largest tensor that is made in it."""
    return _LargestTensor()
