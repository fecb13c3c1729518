# Two images of endpoint and runs, which the Kubernetes manifests use; --build-arg EXTRAS=raw,zst adds what pyproject.toml calls so:
#
#   docker build --target cpu  --build-arg TORCH_INDEX=URL --tag touchstone:0.29.1-cpu  .
#   docker build --target cuda                             --tag touchstone:0.29.1-cuda .
#
# PyPI's torch carries CUDA's libraries, some gigabytes. TORCH_INDEX is the package index that holds torch without them (its address stands
# on PyTorch's installation page, under "CPU"), or a mirror of yours; without it, `cpu` is refused rather than built three times as large.
# All versions are those of constraints.txt. `cpu` has 2.4 GB (built with buildah on Debian's own Python and torch 2.13), `cuda` about 7 (its
# packages have 6.7); both run as user 10001.

FROM python:3.11-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY configs configs
COPY ray_app ray_app
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.11-slim AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/touchstone
COPY constraints.txt /constraints.txt
COPY --from=wheel /wheels /wheels

FROM packages AS packages-cpu
ARG TORCH_INDEX
ARG EXTRAS
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX: the package index that holds torch without CUDA" >&2; exit 1; }
RUN /opt/touchstone/bin/pip install --no-deps --constraint /constraints.txt --index-url "$TORCH_INDEX" torch torchvision
RUN /opt/touchstone/bin/pip install --constraint /constraints.txt "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"

RUN cd /opt/touchstone/lib/python3.11/site-packages && rm -rf torch/test torch/bin/test_* ray/jars c2pa/libs/*.rlib

FROM packages AS packages-cuda
ARG EXTRAS
RUN /opt/touchstone/bin/pip install --constraint /constraints.txt "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"
RUN cd /opt/touchstone/lib/python3.11/site-packages && rm -rf ray/jars c2pa/libs/*.rlib

FROM python:3.11-slim AS base
# wget: KubeRay's own liveness probes call it. rsync, and a login shell's PATH: `ray up` works by them. tini: signals reach the server, and
# its children are waited for. USER_ID: of whoever mounts what only its owner may read, as `ray up` does with a token.
ARG USER_ID=10001
RUN apt-get update \
 && apt-get install --yes --no-install-recommends rsync tini wget \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid "$USER_ID" --create-home --shell /usr/sbin/nologin touchstone \
 && echo 'PATH=/opt/touchstone/bin:$PATH' > /etc/profile.d/touchstone.sh \
 && ln -s /opt/touchstone/bin/ray /opt/touchstone/bin/serve /opt/touchstone/bin/touchstone /usr/local/bin/
ENV PATH=/opt/touchstone/bin:$PATH HOME=/home/touchstone PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 RAY_USAGE_STATS_ENABLED=0
WORKDIR /home/touchstone
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 \
  CMD ["wget", "--quiet", "--tries=1", "--timeout=4", "--output-document=/dev/null", "http://127.0.0.1:8000/healthz"]
ENTRYPOINT ["tini", "--"]
# Tokens come by TOUCHSTONE_TOKENS: without them it does not start. Give it --shm-size=1g: Ray's object store lives there.
CMD ["touchstone", "serve", "--host", "0.0.0.0"]
USER $USER_ID

FROM base AS cpu
COPY --from=packages-cpu /opt/touchstone /opt/touchstone

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/touchstone /opt/touchstone
