"""TransCLIP against the numbers that its authors' code printed; see tests/golden2/README.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from golden_count import plain

from dassl_lite.models import transduction
from dassl_lite.models.transduction import Mixture
from dassl_lite.utils import UserError

CASES = json.loads((Path(__file__).parents[1] / "golden2" / "transclip.json").read_text())["cases"]
FEW, OTHERS = (
    [name for name, case in CASES.items() if case["few"] == few and "quirk" not in name] for few in (True, False)
)
FORWARD, STEPS = 1e-5, 1e-3
ALL = ("DATASET.NUM_SHOTS", "-1")
AUTHORS = (*ALL, "TRAINER.TransCLIP.AS_AUTHORS", "True")


class Compared(Mixture):
    """A mixture whose every iteration is compared with the authors'."""

    arrays, case, error, run = None, "", None, 0

    def same(self, key, found, tolerance=STEPS):
        if f"{self.case}.{key}" in self.arrays:
            assert self.error(found, self.arrays[f"{self.case}.{key}"]) < tolerance, key

    def start(self):
        super().start()
        graph = torch.zeros(len(self.neighbours), len(self.images)).scatter(1, self.neighbours, self.weights)
        self.same("y_hat", self.predictions, FORWARD)
        self.same("z0", self.shares, FORWARD)
        self.same("mu0", self.means[:, None], FORWARD)
        self.same("std0", self.variance, FORWARD)
        self.same("W_dense", graph, FORWARD)
        self.same("loglik0", self.log_likelihood(), FORWARD)

    def fit(self, gamma=0.0):
        self.step = 0
        shares = super().fit(gamma)
        self.run += 1
        return shares

    def assign(self):
        super().assign()
        self.same(f"g{self.run}.it{self.step}.z", self.shares)

    def estimate(self, gamma):
        super().estimate(gamma)
        self.same(f"g{self.run}.it{self.step}.mu", self.means[:, None])
        self.same(f"g{self.run}.it{self.step}.std", self.variance)
        self.step += 1


@pytest.fixture
def compared(golden2, error, monkeypatch):
    def make(case):
        fields = {"arrays": golden2.npz("transclip"), "case": case, "error": staticmethod(error)}
        kind = type("Compared", (Compared,), fields)
        for module in ("dassl_lite.trainers.transclip", "dassl_lite.engine.methods.feature_trainer"):
            monkeypatch.setattr(f"{module}.Mixture", kind)
        return fields["arrays"]

    return make


def tensor(arrays, key):
    return torch.from_numpy(plain(arrays[key]))


@pytest.mark.slow
@pytest.mark.parametrize("case", FEW)
def test_transclip_with_shots_equals_its_authors(on_features, compared, error, case):
    arrays = compared(case)
    trainer = on_features("TransCLIP", "transclip", case, *AUTHORS)
    trainer.train()
    accuracies = CASES[case]["accs_in_call_order"]
    search = json.loads((Path(trainer.output_dir) / "transclip" / "search.json").read_text())
    assert search["accuracies"] == pytest.approx(accuracies[1::2])
    assert search["gamma"] == search["gammas"][search["accuracies"].index(max(search["accuracies"]))]
    assert trainer.results["test"]["accuracy"] == pytest.approx(CASES[case]["test_acc_at_best_val"])
    trainer.head.gamma.fill_(search["gammas"][-1])
    features = tensor(arrays, f"{case}.in.test")
    shares = trainer.transduce(features, trainer.model_inference(features)).softmax(dim=1)
    assert error(shares, arrays[f"{case}.z"]) < STEPS
    right = (shares.argmax(dim=1) == tensor(arrays, f"{case}.in.test_labels")).double().mean().item()
    assert 100 * right == pytest.approx(CASES[case]["final_acc"])


@pytest.mark.parametrize("case", OTHERS)
def test_transclip_without_shots_equals_its_authors(on_features, compared, error, case):
    """On the class names, and on the prototypes of another method."""
    arrays = compared(case)
    options = ("TRAINER.TransCLIP.SUPPORT", "False", *ALL)
    method = "TransCLIP"
    if f"{case}.in.init_proto" in arrays:
        options, method = ("TEST.TRANSDUCTIVE", "True", *ALL), "ZeroshotCLIP"
    trainer = on_features(method, "transclip", case, *options, train="none")
    if method != "TransCLIP":
        trainer.head.prototypes = F.normalize(tensor(arrays, f"{case}.in.init_proto"), dim=-1)
    trainer.train()
    assert trainer.results["test"]["accuracy"] == pytest.approx(CASES[case]["final_acc"])
    features = tensor(arrays, f"{case}.in.test")
    shares = trainer.transduce(features, trainer.model_inference(features)).softmax(dim=1)
    assert error(shares, arrays[f"{case}.z"]) < STEPS


def dense(mixture, asked):
    """Weights (R, n) of the three nearest images of each row, its own left out, by sorting all cosines."""
    cosines = asked @ mixture.images.t()
    cosines[: len(mixture.images)].fill_diagonal_(-2)
    kept = cosines >= cosines.sort(dim=1).values[:, -3:-2]
    return torch.where(kept, cosines, torch.zeros(()))


@pytest.fixture
def mixture(golden2):
    arrays = golden2.npz("transclip")
    images, shots = tensor(arrays, "few.in.test"), tensor(arrays, "few.in.train0")
    logits = 100 * F.normalize(images, dim=-1) @ F.normalize(tensor(arrays, "few.in.text"), dim=-1).t()
    targets = F.one_hot(tensor(arrays, "few.in.train_labels"))
    return lambda **options: Mixture(images, logits, shots, targets, trust=0.5, **options)


@pytest.mark.parametrize("memory", [64 << 20, 3 * 60 * 4])
def test_labels_spread_from_the_shots_to_the_images_nearest_to_them(mixture, monkeypatch, memory):
    monkeypatch.setattr(transduction, "_BYTES", memory)  # of three rows of cosines at a time
    found = mixture()
    of_images, of_shots = dense(found, torch.cat([found.images, found.support])).split([60, 20])
    expected = (of_images + of_images.t()) @ found.shares + of_shots.t() @ found.targets
    torch.testing.assert_close(found.spread(), expected)


def test_a_weight_of_the_shots_does_not_depend_on_those_tried_before(mixture):
    found = mixture()
    alone = found.fit(0.2)
    found.fit(0.002)
    found.start()
    assert torch.equal(found.fit(0.2), alone)


@pytest.mark.parametrize("images", [1, 2, 5])
def test_few_images_and_classes_without_any_are_no_error(images):
    torch.manual_seed(0)
    for as_authors in (False, True):
        found = Mixture(torch.randn(images, 6), torch.randn(images, 3), as_authors=as_authors).fit()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(images))
    some = torch.eye(3)[[0, 0, 1]]  # the last class has no shots, and the others unequal numbers
    found = Mixture(torch.randn(images, 6), torch.randn(images, 3), torch.randn(3, 6), some, trust=0.5).fit(0.02)
    assert torch.isfinite(found).all()


@pytest.mark.slow
def test_the_step_takes_the_logits_of_any_method(on_features):
    plain = on_features("TaskRes", "transclip", "few", *ALL, "OPTIM.MAX_EPOCH", "2")
    plain.train()
    step = on_features("TaskRes", "transclip", "few", *ALL, "TEST.TRANSDUCTIVE", "True", output="step")
    step.load_model(plain.output_dir)
    seen = []
    step.evaluator.process = lambda logits, labels: seen.append(logits)
    step.evaluator.evaluate = lambda: {"accuracy": 0.0}
    step.test()
    features = torch.cat([batch["feature"] for batch in plain.test_loader])
    with torch.no_grad():
        expected = Mixture(features, plain.model_inference(features)).fit()
    torch.testing.assert_close(torch.cat(seen).softmax(dim=1), expected)


def test_a_checkpoint_whose_shots_are_a_scalar_is_refused_in_one_line(on_features):
    trainer = on_features("TransCLIP", "transclip", "few", *ALL)
    with pytest.raises(UserError, match='weights in "x.pth" do not fit'):
        trainer.adapt_state_dict(trainer.head, {"support": torch.tensor(1.0)}, {}, Path("x.pth"))


@pytest.mark.slow
def test_the_epoch_is_selected_on_images_taken_one_by_one(on_features):
    options = (*ALL, "OPTIM.MAX_EPOCH", "2", "TEST.FINAL_MODEL", "best_val")
    plain = on_features("TaskRes", "transclip", "few", *options)
    step = on_features("TaskRes", "transclip", "few", *options, "TEST.TRANSDUCTIVE", "True", output="step")
    for trainer in (plain, step):
        trainer.train()
    of_val = [[one["accuracy"] for one in trainer.history if one["split"] == "val"] for trainer in (plain, step)]
    assert of_val[0] == of_val[1]


@pytest.mark.slow
def test_results_say_that_they_are_transductive(on_features):
    for method, options, label in (
        ("TransCLIP", (), "TransCLIP (transductive)"),
        ("TransCLIP", ("TEST.TRANSDUCTIVE", "True"), "TransCLIP (transductive)"),
        ("ZeroshotCLIP", ("TEST.TRANSDUCTIVE", "True"), "ZeroshotCLIP + TransCLIP (transductive)"),
        ("ZeroshotCLIP", (), "ZeroshotCLIP"),
    ):
        found = on_features(method, "transclip", "few", *ALL, *options).run_results()
        assert (found["method"], found["transductive"]) == (label, "transductive" in label)


@pytest.mark.slow
def test_shots_are_loaded_for_the_classes_that_are_known(on_features):
    trained = on_features("TransCLIP", "transclip", "few", *ALL)
    trained.train()
    again = on_features("TransCLIP", "transclip", "few", *ALL, output="again")
    again.load_model(trained.output_dir)
    assert again.test() == trained.results["test"]["accuracy"]
    other = on_features("TransCLIP", "transclip", "one", *ALL, output="other")
    other.load_model(trained.output_dir)  # of other classes, so no shots are left
    features = torch.cat([batch["feature"] for batch in other.test_loader])
    logits = other.model_inference(features)
    expected = Mixture(features, logits).fit()
    torch.testing.assert_close(other.transduce(features, logits).softmax(dim=1), expected)


def test_a_method_without_features_refuses_the_step(golden_trainer):
    from dassl_lite.engine import TRAINER_REGISTRY, TrainerX

    TRAINER_REGISTRY.register(type("NoFeatures", (TrainerX,), {}), name="NoFeatures", force=True)
    with pytest.raises(UserError, match="TEST.TRANSDUCTIVE needs a method on CLIP's image features, which NoFeatures"):
        golden_trainer("NoFeatures", "vit0", "OxfordPets", "TEST.TRANSDUCTIVE", "True")
