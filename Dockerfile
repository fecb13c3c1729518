# Two images for endpoints and runs, which the Kubernetes manifests use; --build-arg EXTRAS=raw,zst adds extras of pyproject.toml:
#
#   docker build --target cpu  --build-arg TORCH_INDEX=URL --tag touchstone:1.3.0-cpu  .
#   docker build --target cuda                             --tag touchstone:1.3.0-cuda .
#
# PyPI's torch includes several gigabytes of CUDA libraries. TORCH_INDEX is the package index that has torch without them (its URL is
# on PyTorch's installation page, under "CPU"), or your mirror of it. Without it, the build of `cpu` fails instead of being three times as large.
# All versions are from constraints.txt. `cpu` has 2.4 GB (built with buildah on Debian's own Python and torch 2.13), `cuda` about 7 (its
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
RUN test -n "$TORCH_INDEX" || { echo "give --build-arg TORCH_INDEX: the package index that has torch without CUDA" >&2; exit 1; }
RUN /opt/touchstone/bin/pip install --no-deps --constraint /constraints.txt --index-url "$TORCH_INDEX" torch torchvision
RUN /opt/touchstone/bin/pip install --constraint /constraints.txt "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"

RUN cd /opt/touchstone/lib/python3.11/site-packages && rm -rf torch/test torch/bin/test_* ray/jars c2pa/libs/*.rlib

FROM packages AS packages-cuda
ARG EXTRAS
RUN /opt/touchstone/bin/pip install --constraint /constraints.txt "$(ls /wheels/*.whl)${EXTRAS:+[$EXTRAS]}"
RUN cd /opt/touchstone/lib/python3.11/site-packages && rm -rf ray/jars c2pa/libs/*.rlib

FROM python:3.11-slim AS base
# wget: KubeRay's liveness probes call it. rsync and the PATH of a login shell: `ray up` needs them. tini: forwards signals to the server, and
# reaps its children. USER_ID: the owner of files that are mounted and that only their owner may read, such as the token of `ray up`.
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
# Set tokens in TOUCHSTONE_TOKENS: without them it does not start. Use --shm-size=1g: Ray's object store is in /dev/shm.
CMD ["touchstone", "serve", "--host", "0.0.0.0"]
USER $USER_ID

FROM base AS cpu
COPY --from=packages-cpu /opt/touchstone /opt/touchstone

FROM base AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=packages-cuda /opt/touchstone /opt/touchstone
