# The second version: it moves the data on to format 2, for good.
if [ "$(cat /data/format)" = 1 ]; then
  echo 2 > /data/format
  rm -r /data/deep
  echo "hello two" > /data/index.html
fi
exec httpd -f -p 8080 -h /data
