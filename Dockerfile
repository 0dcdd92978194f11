# torch's default Linux wheel brings its CUDA libraries: with `--gpus all` the same image computes on the GPU.
FROM python:3.11.14-slim-bookworm

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    AGG2EXP_DATA=/data

WORKDIR /app

# Requirements alone first: a change of the code does not install torch again.
COPY requirements.txt requirements-nnunet.txt ./
RUN pip install -r requirements.txt && pip install --no-deps -r requirements-nnunet.txt

COPY . .
RUN pip install --no-deps -e . \
    && python -m dashboard.viewer.fetch \
    && useradd --create-home --uid 10001 explorer \
    && mkdir /data \
    && chown 10001:10001 /data

USER 10001
VOLUME /data
EXPOSE 8501

HEALTHCHECK --interval=30s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8501/_stcore/health', timeout=4)"]

# Inside the container every address is right: what is published, and to whom, `docker run -p` says. Where
# AGG2EXP_SIGN_IN names a file, people sign in.
CMD ["sh", "-c", "[ -n \"$AGG2EXP_SIGN_IN\" ] || set -- --insecure; agg2exp demo && exec agg2exp dashboard --address 0.0.0.0 \"$@\"", "sh"]
