# One request and its answer.
read -r method path version
scheme=http host=
while read -r name value && [ "${name%:}" != "$name" ]; do
    value=${value%"$(printf '\r')"}
    case $name in
        [Hh]ost:) host=$value ;;
        [Xx]-[Ff]orwarded-[Pp]roto:) scheme=$value ;;
    esac
done
answer() { printf 'HTTP/1.1 %s\r\n%s\r\nContent-Length: %s\r\nConnection: close\r\n\r\n%s' "$1" "$2" "${#3}" "$3"; }
if [ "$scheme" = https ]; then answer "500 Broken" "X-A: b" "it hurts"; else answer "301 Moved" "Location: https://$host$path" ""; fi
