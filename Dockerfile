# Two images that run the README's commands:
#
#   docker build --target cpu  -t dassl-lite:cpu  .
#   docker build --target cuda -t dassl-lite:cuda .
#   docker run --rm dassl-lite:cpu                                           # the README's first command
#   docker run --rm -v "$PWD/DATA:/data" -v "$PWD/output:/dassl-lite/output" \
#     --gpus all dassl-lite:cuda dassl-lite train --trainer TaskRes --root /data --dataset-config-file caltech101 --backbone ViT-B/16
#   docker build --target test .                                             # the README's test command
#
# torch's default wheels for Linux bring their own CUDA libraries, so both images start from plain Python, and the GPU's
# driver comes from the host (NVIDIA Container Toolkit). For a smaller CPU image, name an index of CPU-only wheels:
#   --build-arg TORCH_INDEX_URL=...

ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim AS source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 DASSL_LITE_CACHE=/cache
RUN mkdir -m 777 /cache
WORKDIR /dassl-lite
COPY . .

FROM source AS cpu
ARG TORCH_INDEX_URL=""
RUN if [ -n "$TORCH_INDEX_URL" ]; then pip install torch torchvision --index-url "$TORCH_INDEX_URL"; fi \
    && pip install -e .
CMD ["python", "tools/train.py", "--trainer", "TaskRes"]

FROM source AS cuda
RUN pip install -e .
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["python", "tools/train.py", "--trainer", "TaskRes"]

# The README's two commands, word for word. git lists the files that the packaging tests build a wheel from.
FROM source AS test
RUN apt-get update && apt-get install -y --no-install-recommends git && rm -rf /var/lib/apt/lists/*
RUN .ci/readme "Try it"
RUN .ci/readme "Test it"
