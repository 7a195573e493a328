"""Every key of the engine with its default: Dassl's names and values, and ours beside them.

Where ours differ from Dassl's it is said in the comment. A method's own keys stand beside the method (its
``extend_cfg``), not here.
"""

from __future__ import annotations

from yacs.config import CfgNode as CN  # noqa: N817


def get_cfg_default() -> CN:
    """A fresh, unfrozen config with every engine key at its default."""
    return _C.clone()


def _defaults() -> CN:
    cfg = CN()
    cfg.VERSION = 1
    cfg.OUTPUT_DIR = "./output"
    cfg.RESUME = ""  # folder of a run to go on with
    cfg.SEED = 1  # 0 is a seed too; a negative value leaves the random streams unseeded (Dassl: -1)
    cfg.USE_CUDA = True  # use a GPU if there is one
    cfg.VERBOSE = True
    _add_input(cfg)
    _add_dataset(cfg)
    _add_dataloader(cfg)
    _add_model(cfg)
    _add_optim(cfg)
    _add_train_and_test(cfg)
    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = ""
    return cfg


def _add_input(cfg: CN) -> None:
    node = cfg.INPUT = CN()
    # Empty SIZE, PIXEL_MEAN, PIXEL_STD, INTERPOLATION: taken from the backbone (Dassl: 224 and ImageNet's).
    node.SIZE = ()  # (height, width) in pixels
    node.INTERPOLATION = ""  # bilinear | bicubic | nearest
    node.PIXEL_MEAN = []
    node.PIXEL_STD = []
    node.TRANSFORMS = ()  # empty: random_resized_crop, random_flip, normalize
    node.NO_TRANSFORM = False  # images as tensors in [0, 1], nothing else done
    node.CROP_PADDING = 4  # pixels around the image before random_crop
    node.RRCROP_SCALE = (0.08, 1.0)  # area range of random_resized_crop
    node.CUTOUT_N = 1  # number of holes
    node.CUTOUT_LEN = 16  # their side in pixels
    node.GN_MEAN = 0.0  # gaussian_noise
    node.GN_STD = 0.15
    node.RANDAUGMENT_N = 2
    node.RANDAUGMENT_M = 10
    node.COLORJITTER_B = 0.4  # brightness
    node.COLORJITTER_C = 0.4  # contrast
    node.COLORJITTER_S = 0.4  # saturation
    node.COLORJITTER_H = 0.1  # hue
    node.RGS_P = 0.2  # probability of randomgrayscale
    node.GB_P = 0.5  # probability of gaussian_blur
    node.GB_K = 21  # its kernel size


def _add_dataset(cfg: CN) -> None:
    node = cfg.DATASET = CN()
    node.ROOT = ""  # folder that holds the datasets' folders
    node.NAME = ""
    node.SOURCE_DOMAINS = ()
    node.TARGET_DOMAINS = ()
    node.NUM_LABELED = -1
    node.NUM_SHOTS = -1  # training images per class; -1: all
    node.VAL_PERCENT = 0.1
    node.STL10_FOLD = -1
    node.CIFAR_C_TYPE = ""
    node.CIFAR_C_LEVEL = 1
    node.ALL_AS_UNLABELED = False
    node.SUBSAMPLE_CLASSES = "all"  # all | base (first half of the labels) | new (second half)
    # Ours:
    node.TEMPLATE = ""  # prompt with {} for the class name; empty: the dataset's own
    node.FEWSHOT_FILE = ""  # JSON file of a few-shot draw; empty: draw, and keep it beside the dataset
    node.FILE = ""  # dataset Features: the .npz of features, in place of images
    node.ON_ERROR = "stop"  # stop | skip: what a corrupt image does
    node.FEATURES = CN()
    node.FEATURES.VIEWS = 10  # augmented views per training image; epoch e reads view e mod VIEWS; 0: no cache
    node.FEATURES.SEED = 0  # of the views
    node.FEATURES.DIR = ""  # where features are kept; empty: the cache folder
    node.FEATURES.BATCH_SIZE = 256  # images per pass of the encoder


def _add_dataloader(cfg: CN) -> None:
    node = cfg.DATALOADER = CN()
    node.NUM_WORKERS = 4
    node.K_TRANSFORMS = 1  # transformed copies per training image: img, img2, ...
    node.RETURN_IMG0 = False  # the untransformed image as img0
    node.TRAIN_X = CN()
    node.TRAIN_X.SAMPLER = "RandomSampler"
    node.TRAIN_X.BATCH_SIZE = 32
    node.TRAIN_X.N_DOMAIN = 0  # RandomDomainSampler: domains per batch
    node.TRAIN_X.N_INS = 16  # RandomClassSampler: images per class
    node.TRAIN_U = CN()
    node.TRAIN_U.SAME_AS_X = True
    node.TRAIN_U.SAMPLER = "RandomSampler"
    node.TRAIN_U.BATCH_SIZE = 32
    node.TRAIN_U.N_DOMAIN = 0
    node.TRAIN_U.N_INS = 16
    node.TEST = CN()
    node.TEST.SAMPLER = "SequentialSampler"
    node.TEST.BATCH_SIZE = 32


def _add_model(cfg: CN) -> None:
    node = cfg.MODEL = CN()
    node.INIT_WEIGHTS = ""  # model weights to start from
    node.BACKBONE = CN()
    node.BACKBONE.NAME = "demo"  # ours: the small CLIP shipped with the package (Dassl: empty)
    node.BACKBONE.PRETRAINED = True
    node.HEAD = CN()
    node.HEAD.NAME = ""
    node.HEAD.HIDDEN_LAYERS = ()
    node.HEAD.ACTIVATION = "relu"
    node.HEAD.BN = True
    node.HEAD.DROPOUT = 0.0


def _add_optim(cfg: CN) -> None:
    node = cfg.OPTIM = CN()
    node.NAME = "adam"  # adam | amsgrad | sgd | rmsprop | radam | adamw
    node.LR = 0.0003
    node.WEIGHT_DECAY = 5e-4
    node.MOMENTUM = 0.9
    node.SGD_DAMPNING = 0  # (sic: Dassl's spelling)
    node.SGD_NESTEROV = False
    node.RMSPROP_ALPHA = 0.99
    node.ADAM_BETA1 = 0.9
    node.ADAM_BETA2 = 0.999
    node.ADAM_EPS = 1e-8  # ours, torch's default; for adamw and the other relatives of Adam too
    node.STAGED_LR = False  # a smaller rate for all but NEW_LAYERS
    node.NEW_LAYERS = ()
    node.BASE_LR_MULT = 0.1
    node.LR_SCHEDULER = "single_step"  # single_step | multi_step | cosine
    node.MIN_LR = 0.0  # ours: where cosine ends
    node.STEPSIZE = (-1,)  # epochs between (single_step) or at (multi_step) decays; -1: MAX_EPOCH
    node.GAMMA = 0.1
    node.MAX_EPOCH = 10
    node.SCHEDULE_UNIT = "epoch"  # ours: epoch | batch, after which the rate changes; all numbers stay in epochs
    # Ours: pairs (shots, epochs) in ascending order; the first with as many shots as are drawn, else the last, sets
    # MAX_EPOCH. A MAX_EPOCH that is set after it (a yaml, the command line) wins.
    node.EPOCHS_BY_SHOTS = ()
    node.WARMUP_EPOCH = -1  # -1: no warm-up
    node.WARMUP_TYPE = "linear"  # linear | constant
    node.WARMUP_CONS_LR = 1e-5
    node.WARMUP_MIN_LR = 1e-5
    node.WARMUP_RECOUNT = True  # the schedule counts its epochs from the end of the warm-up


def _add_train_and_test(cfg: CN) -> None:
    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints; 0: only the last
    cfg.TRAIN.CHECKPOINT_SECONDS = 60.0  # ours: a checkpoint to resume from, at an epoch's end; replaced by the next
    cfg.TRAIN.PRINT_FREQ = 10  # batches between log lines
    cfg.TRAIN.COUNT_ITER = "train_x"  # what an epoch's length is counted by: train_x | train_u | smaller_one
    cfg.TEST = CN()
    cfg.TEST.EVALUATOR = "Classification"
    cfg.TEST.PER_CLASS_RESULT = False
    cfg.TEST.COMPUTE_CMAT = False  # save the confusion matrix as cmat.pt
    cfg.TEST.NO_TEST = False
    cfg.TEST.SPLIT = "test"  # test | val
    cfg.TEST.FINAL_MODEL = "last_step"  # last_step | best_val


_C = _defaults()  # Dassl's name; what a fork adds to it is in every config
