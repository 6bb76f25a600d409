"""Molecules as vectors."""

import json

import numpy as np
import pandas as pd
import pytest

from scfm.errors import CheckpointError, InputError
from scfm.molecules import LanguageModel, MoleculeTable, Morgan, canonical_smiles, molecules_from

pytest.importorskip("rdkit")
ASPIRIN, SALT = "CC(=O)Oc1ccccc1C(=O)O", "CC(=O)Oc1ccccc1C(=O)[O-].[Na+]"
CAFFEINE = "Cn1cnc2c1c(=O)n(C)c(=O)n2C"


def test_spellings_of_a_molecule_have_one_vector():
    one, two, other = Morgan().vectors([ASPIRIN, "O=C(O)c1ccccc1OC(C)=O", CAFFEINE])
    np.testing.assert_array_equal(one, two)
    assert (one != other).sum() > 10
    assert set(np.unique(one)) == {0, 1}


def test_fingerprints_are_those_of_the_older_rdkit_function():
    from rdkit import Chem
    from rdkit.Chem import rdMolDescriptors

    expected = rdMolDescriptors.GetHashedMorganFingerprint(Chem.MolFromSmiles(CAFFEINE), 3, nBits=256)
    counts = np.zeros(256)
    for place, count in expected.GetNonzeroElements().items():
        counts[place] = count
    (found,) = Morgan(radius=3, size=256, counts=True).vectors([CAFFEINE])
    np.testing.assert_allclose(np.expm1(found), counts, atol=1e-5)


def test_what_is_left_out_of_a_salt_is_said():
    table = canonical_smiles([SALT, ASPIRIN])
    assert table["left_out"].tolist() == ["[Na+]", ""]
    assert table["canonical"][0] == table["canonical"][1]
    assert canonical_smiles([SALT], salts="keep")["canonical"][0].count(".") == 1
    with_salt, without = Morgan(salts="keep").vectors([SALT]), Morgan().vectors([SALT])
    assert (with_salt != without).any()


def test_strings_that_are_no_molecules_are_named(capfd):
    with pytest.raises(InputError, match=r"2 of 4 SMILES.*row 1: 'C1CC'; row 3: ''") as caught:
        Morgan().vectors([ASPIRIN, "C1CC", CAFFEINE, ""])
    assert "PubChem" in caught.value.fix
    assert capfd.readouterr() == ("", "")
    with pytest.raises(InputError, match="a list of them"):
        Morgan().vectors(ASPIRIN)


def test_table_is_read_by_name_or_by_any_spelling():
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=["O=C(O)c1ccccc1OC(C)=O", CAFFEINE])
    assert MoleculeTable(frame).vectors([ASPIRIN]).tolist() == [[1, 2]]
    named = MoleculeTable(frame.set_axis(["aspirin", "caffeine"]), key="drug")
    assert named.vectors(["caffeine", "aspirin"]).tolist() == [[3, 4], [1, 2]]
    with pytest.raises(InputError, match="no row for 'water'"):
        named.vectors(["water"])
    with pytest.raises(InputError, match="finite numbers"):
        MoleculeTable(frame * np.nan)


@pytest.fixture(scope="module")
def chemberta(tmp_path_factory):
    """A RoBERTa checkpoint as ChemBERTa's, of random weights: a masked-language model with a word-level SMILES tokenizer."""
    import torch
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForMaskedLM

    folder = tmp_path_factory.mktemp("chemberta")
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"CNOScnos()=#123456[]+-@H.", "Cl", "Br"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("Cl|Br|."), "isolated")
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=62, **special).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        RobertaForMaskedLM(config).save_pretrained(folder)
    return folder


def test_language_model_gives_its_mean_state(chemberta, capfd):
    import torch
    from transformers import AutoTokenizer, RobertaForMaskedLM

    encoder = LanguageModel(str(chemberta))
    assert encoder.dim == 16
    state = torch.get_rng_state()
    capfd.readouterr()
    found = encoder.vectors([ASPIRIN, CAFFEINE])
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)
    smiles = canonical_smiles([ASPIRIN, CAFFEINE])["canonical"].tolist()
    model = RobertaForMaskedLM.from_pretrained(chemberta).eval().roberta
    batch = AutoTokenizer.from_pretrained(chemberta)(smiles, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    np.testing.assert_allclose(found, ((states * mask).sum(1) / mask.sum(1)).numpy(), atol=1e-5)
    with pytest.raises(InputError, match="tokens"):
        encoder.vectors(["C" * 80])
    with pytest.raises(CheckpointError, match="no language model"):
        LanguageModel(str(chemberta / "none")).vectors([ASPIRIN])


def test_encoders_are_written_and_read(chemberta):
    table = MoleculeTable(pd.DataFrame([[1.5, 2.0]], index=[ASPIRIN]))
    for encoder in (Morgan(radius=1, size=64), table, LanguageModel(str(chemberta))):
        again = molecules_from(json.loads(json.dumps(encoder.record())))
        np.testing.assert_array_equal(again.vectors([ASPIRIN]), encoder.vectors([ASPIRIN]))
    with pytest.raises(CheckpointError, match="are others"):
        LanguageModel(str(chemberta), sha256="0" * 64).vectors([ASPIRIN])
