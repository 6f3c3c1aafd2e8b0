# The first version: it keeps its data in format 1, and exits when it sees another.
if [ -e /data/format ] && [ "$(cat /data/format)" != 1 ]; then
  echo "I cannot read data of the format $(cat /data/format)"
  exit 3
fi
if [ ! -e /data/format ]; then
  echo 1 > /data/format
  mkdir -p /data/deep
  head -c 100000 /dev/urandom > /data/deep/random
  echo hello > /data/index.html
  chmod 640 /data/deep/random
  chown 1000:2000 /data/deep/random
  ln -s deep/random /data/link
fi
exec httpd -f -p 8080 -h /data
