"""Every key of the engine with its default: Dassl's names and values, plus our own.

Comments say what a key does and, where it matters, which way it pulls. "Ours" marks a key that Dassl does not have or
a default that differs from Dassl's. A method declares its own keys beside its code, not here.
"""

from __future__ import annotations

from yacs.config import CfgNode as CN  # noqa: N817


def get_cfg_default() -> CN:
    """A new, unfrozen config with every engine key at its default."""
    return _C.clone()


def _defaults() -> CN:
    cfg = CN()
    cfg.VERSION = 1  # format of the config; always 1
    cfg.OUTPUT_DIR = "./output"  # folder for the log, checkpoints and results
    cfg.RESUME = ""  # folder of a run to resume
    cfg.SEED = 1  # seed of all random generators; negative: unseeded. 0 is a seed (ours: Dassl's default is -1)
    cfg.USE_CUDA = True  # use a GPU if there is one
    cfg.VERBOSE = True  # False: only warnings on the console
    _add_input(cfg)
    _add_dataset(cfg)
    _add_dataloader(cfg)
    _add_model(cfg)
    _add_optim(cfg)
    _add_train_and_test(cfg)
    cfg.LOG = CN()  # ours
    cfg.LOG.TRACKERS = (
        "tensorboard",
    )  # where scalars and results go: tensorboard, mlflow, wandb, a plug-in's; (): none
    cfg.TRAINER = CN()
    cfg.TRAINER.NAME = ""  # registered name of the method
    return cfg


def _add_input(cfg: CN) -> None:
    node = cfg.INPUT = CN()
    # Ours: an empty SIZE, INTERPOLATION, RESIZE_MODE, FILL_COLOR, PIXEL_MEAN or PIXEL_STD is taken from the backbone
    # (Dassl: 224, ImageNet's).
    node.SIZE = ()  # (height, width) in pixels
    node.INTERPOLATION = ""  # bilinear | bicubic | nearest
    # In testing, to SIZE: shortest (the shorter side fits, the rest is cut off) | squash (both sides fit, distorted) |
    # longest (the longer side fits, the rest is filled) | cover (shortest, for sides that differ)
    node.RESIZE_MODE = ""
    node.FILL_COLOR = ()  # longest: red, green and blue of what is filled, 0 to 255
    node.PIXEL_MEAN = []  # per channel, for normalize
    node.PIXEL_STD = []
    node.TRANSFORMS = ()  # training transforms; empty: random_resized_crop, random_flip, normalize
    node.NO_TRANSFORM = False  # True: images become tensors in [0, 1], without any transform
    node.CROP_PADDING = 4  # random_crop: pixels of padding; more shifts the image further
    node.RRCROP_SCALE = (0.08, 1.0)  # random_resized_crop: range of the crop's area; a lower minimum crops harder
    node.CUTOUT_N = 1  # cutout: number of holes
    node.CUTOUT_LEN = 16  # cutout: side of a hole in pixels
    node.GN_MEAN = 0.0  # gaussian_noise: mean
    node.GN_STD = 0.15  # gaussian_noise: standard deviation, on normalised pixels
    node.RANDAUGMENT_N = 2  # randaugment*: operations per image
    node.RANDAUGMENT_M = 10  # randaugment: strength, 0 to 30
    node.COLORJITTER_B = 0.4  # colorjitter: brightness changes by up to this fraction
    node.COLORJITTER_C = 0.4  # colorjitter: contrast
    node.COLORJITTER_S = 0.4  # colorjitter: saturation
    node.COLORJITTER_H = 0.1  # colorjitter: hue shifts by up to this part of the colour circle, at most 0.5
    node.RGS_P = 0.2  # randomgrayscale: probability
    node.GB_P = 0.5  # gaussian_blur: probability
    node.GB_K = 21  # gaussian_blur: kernel size in pixels, odd


def _add_dataset(cfg: CN) -> None:
    node = cfg.DATASET = CN()
    node.ROOT = ""  # folder that contains the datasets' folders
    node.NAME = ""  # registered name of the dataset
    node.SOURCE_DOMAINS = ()  # domain adaptation: domains to train on
    node.TARGET_DOMAINS = ()  # domain adaptation: domains to test on
    node.NUM_LABELED = -1  # semi-supervised datasets: number of labelled images; -1: all
    node.NUM_SHOTS = -1  # training images per class; -1: all
    node.VAL_PERCENT = 0.1  # semi-supervised datasets: fraction of the training images held out for validation
    node.STL10_FOLD = -1  # STL10: predefined fold, 0 to 9; -1: none
    node.CIFAR_C_TYPE = ""  # CIFAR-C: type of corruption
    node.CIFAR_C_LEVEL = 1  # CIFAR-C: severity, 1 to 5
    node.ALL_AS_UNLABELED = False  # semi-supervised datasets: use all training images as unlabelled ones
    node.SUBSAMPLE_CLASSES = "all"  # all | base (first half of the classes) | new (second half)
    # Ours:
    node.TEMPLATE = ""  # prompt with {} for the class name; empty: the dataset's own
    node.DESCRIPTIONS = ""  # JSON file, class -> list of sentences that replace its prompts; empty: prompts
    node.FEWSHOT_FILE = ""  # a few-shot draw: .json, CoOp's .pkl, .jsonl or .txt; empty: draw, and keep the draw
    # Where made splits and draws are kept: dataset (in its folder) | cache | auto (dataset; your own data: cache)
    node.SPLITS_IN = "auto"
    node.FILE = ""  # dataset Features: .npz file of image features to use instead of images
    node.TEST_ONLY = False  # your own images: without splits, all are test images (True where runs are evaluated)
    node.ON_ERROR = "stop"  # stop | skip: what to do about a corrupt image
    node.SHARDS = CN()  # datasets WebDataset and HFDataset
    node.SHARDS.TRAIN = ""  # WebDataset: training shards below ROOT, such as train-{000..099}.tar; a path or a URL
    node.SHARDS.VAL = ""  # the same for validation
    node.SHARDS.TEST = ""  # and for testing
    node.SHARDS.IMAGE = ""  # ending of the members, or the column, with the images; empty: found
    node.SHARDS.LABEL = ""  # ending, field of .json or column with the labels; empty: found
    node.SHARDS.KEY = ""  # HFDataset: column with a key for each image; empty: a digest of the image
    node.SHARDS.CLASSNAMES = ""  # file of class names in label order, .json or a line each; empty: found
    node.FEATURES = CN()
    node.FEATURES.VIEWS = 10  # augmented views per training image; epoch e uses view e mod VIEWS; 0: no cache
    node.FEATURES.SEED = 0  # seed of the views
    node.FEATURES.DIR = ""  # folder of cached features; empty: the default cache folder
    node.FEATURES.BATCH_SIZE = 256  # images per forward pass of the encoder; lower it to save memory


def _add_dataloader(cfg: CN) -> None:
    node = cfg.DATALOADER = CN()
    node.NUM_WORKERS = -1  # processes that load images, at most; -1: one for each core
    node.K_TRANSFORMS = 1  # transformed copies of each training image: img, img2, ...
    node.RETURN_IMG0 = False  # also return the untransformed image, as img0
    node.TRAIN_X = CN()
    node.TRAIN_X.SAMPLER = "RandomSampler"  # order of the labelled training images
    node.TRAIN_X.BATCH_SIZE = 32
    node.TRAIN_X.N_DOMAIN = 0  # RandomDomainSampler: domains per batch; 0: all
    node.TRAIN_X.N_INS = 16  # RandomClassSampler: images per class
    node.TRAIN_U = CN()  # the same for unlabelled training images
    node.TRAIN_U.SAME_AS_X = True  # use TRAIN_X's settings instead of the ones below
    node.TRAIN_U.SAMPLER = "RandomSampler"
    node.TRAIN_U.BATCH_SIZE = 32
    node.TRAIN_U.N_DOMAIN = 0
    node.TRAIN_U.N_INS = 16
    node.TEST = CN()
    node.TEST.SAMPLER = "SequentialSampler"  # order of the validation and test images
    node.TEST.BATCH_SIZE = 32


def _add_model(cfg: CN) -> None:
    node = cfg.MODEL = CN()
    node.INIT_WEIGHTS = ""  # checkpoint to start training from
    node.BACKBONE = CN()
    node.BACKBONE.NAME = "demo"  # ours: the small CLIP shipped with the package (Dassl: empty)
    node.BACKBONE.PRETRAINED = True  # image networks of Dassl: start from ImageNet weights
    node.HEAD = CN()  # image networks of Dassl: layers between backbone and classifier
    node.HEAD.NAME = ""  # mlp; empty: none
    node.HEAD.HIDDEN_LAYERS = ()  # width of each layer
    node.HEAD.ACTIVATION = "relu"  # relu | leaky_relu
    node.HEAD.BN = True  # batch norm after each layer
    node.HEAD.DROPOUT = 0.0  # dropout probability


def _add_optim(cfg: CN) -> None:
    node = cfg.OPTIM = CN()
    node.NAME = "adam"  # adam | amsgrad | sgd | rmsprop | radam | adamw
    node.LR = 0.0003  # initial learning rate
    node.WEIGHT_DECAY = 5e-4
    node.MOMENTUM = 0.9  # sgd and rmsprop
    node.SGD_DAMPNING = 0  # sgd: dampening of the momentum (Dassl's spelling)
    node.SGD_NESTEROV = False  # sgd: Nesterov momentum
    node.RMSPROP_ALPHA = 0.99  # rmsprop: smoothing of the squared gradients; higher averages over more steps
    node.ADAM_BETA1 = 0.9  # adam and its variants: decay rate of the mean gradient
    node.ADAM_BETA2 = 0.999  # adam and its variants: decay rate of the squared gradients
    node.ADAM_EPS = 1e-8  # ours: adam and its variants: added to the denominator; higher damps tiny gradients
    node.STAGED_LR = False  # train all layers but NEW_LAYERS at a lower rate
    node.NEW_LAYERS = ()  # STAGED_LR: layers that train at LR
    node.BASE_LR_MULT = 0.1  # STAGED_LR: the other layers train at LR times this
    node.LR_SCHEDULER = "single_step"  # single_step | multi_step | cosine
    node.MIN_LR = 0.0  # ours: final learning rate of cosine
    node.STEPSIZE = (-1,)  # epochs between decays (single_step; -1: MAX_EPOCH) or of the decays (multi_step)
    node.GAMMA = 0.1  # single_step, multi_step: factor of a decay
    node.MAX_EPOCH = 10  # number of epochs
    node.SCHEDULE_UNIT = "epoch"  # ours: epoch | batch: when the rate changes; all numbers here stay in epochs
    # Ours: (shots, epochs) pairs in ascending order. The first pair with at least NUM_SHOTS shots, else the last one,
    # sets MAX_EPOCH, unless a later yaml or the command line sets MAX_EPOCH itself.
    node.EPOCHS_BY_SHOTS = ()
    node.WARMUP_EPOCH = -1  # epochs of warm-up; -1: none
    node.WARMUP_TYPE = "linear"  # linear | constant
    node.WARMUP_CONS_LR = 1e-5  # learning rate of a constant warm-up
    node.WARMUP_MIN_LR = 1e-5  # learning rate of a linear warm-up's first epoch
    node.WARMUP_RECOUNT = True  # True: the schedule starts at its epoch 0 after the warm-up; False: at WARMUP_EPOCH


def _add_train_and_test(cfg: CN) -> None:
    cfg.TRAIN = CN()
    cfg.TRAIN.CHECKPOINT_FREQ = 0  # epochs between checkpoints; 0 or less: only the last epoch
    cfg.TRAIN.CHECKPOINT_SECONDS = 60.0  # ours: extra checkpoint after an epoch once the last is this old
    cfg.TRAIN.PRINT_FREQ = 10  # batches between log lines
    # Ours: compile forward pass and loss of a step on features (torch.compile; on CUDA with CUDA graphs): slow to
    # start, faster steps, the same numbers up to rounding
    cfg.TRAIN.COMPILE = False
    cfg.TRAIN.COUNT_ITER = "train_x"  # loader that sets an epoch's length: train_x | train_u | smaller_one
    cfg.TEST = CN()
    cfg.TEST.EVALUATOR = "Classification"  # registered name of the evaluator
    cfg.TEST.PER_CLASS_RESULT = False  # also report the accuracy of each class
    cfg.TEST.COMPUTE_CMAT = False  # save the confusion matrix as cmat.pt
    cfg.TEST.NO_TEST = False  # skip the evaluation after training
    cfg.TEST.SPLIT = "test"  # test | val: split to evaluate
    cfg.TEST.TRANSDUCTIVE = False  # ours: classify all images of SPLIT together, by TransCLIP's mixture
    cfg.TEST.FINAL_MODEL = "last_step"  # last_step | best_val: weights to evaluate after training


_C = _defaults()  # Dassl's name; a fork that adds keys to it adds them to every config
