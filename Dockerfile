# The pinned environment, with CUDA's libraries from PyTorch's own packages: the host needs a driver of version 580 or newer.
#     docker build --tag sightline .
#     docker run --rm --gpus all --volume "$PWD:/sightline" sightline make VENV= repro
FROM python:3.12-slim

RUN apt-get update && apt-get install --yes --no-install-recommends git make && rm -rf /var/lib/apt/lists/*
WORKDIR /sightline
COPY requirements.txt .
RUN pip install --no-cache-dir --requirement requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY src src
COPY stages stages
RUN pip install --no-cache-dir --no-deps --editable .
RUN git config --system --add safe.directory /sightline
CMD ["sightline", "--help"]
